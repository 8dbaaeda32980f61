"""A trial load: everything that a start does up to the values of weights, to say whether it would load.

Reads the model's files and the headers of its weights; takes seconds and little memory for weights of any
size, and no GPU's memory.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dodona.oracle.machine.probe import has_package
from dodona.oracle.models.hub import is_to_be_downloaded, locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.weight_files import stamp_of
from dodona.oracle.systems.own.kv_transfer import resolve_kv_transfer
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.oracle.systems.own.weights import WeightsOnDisk, tensors_of
from dodona.runners.third_party import naming

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.runners.interface import Runner

_NO_THREADS: Final = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' variable: it reads weights in this thread, which knows that they have no values."""
MOST_LAYERS: Final = 5_000
"""Layers that a trial load may have: ten calls of torch each are `meta_device.MOST_CALLS`, and it would give
up after many seconds."""

MOST_TENSORS: Final = 50_000
"""Tensors that its files may have: each is a call or more, and it would give up after many seconds."""


def why_untried(verdict: Verdict) -> str | None:
    """Why the load of a verdict's model can't be tried here; None where it can. Raises ConfigError."""
    lacking = [name for name in ("torch", "transformers") if not has_package(name)]
    if lacking:
        return f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed here"
    config = verdict.config
    model_config, dummy = config.model_config, config.load_config.load_format == "dummy"
    directory = locate_or_download(model_config.model, revision=model_config.revision)
    if not dummy and is_to_be_downloaded(model_config.model, directory):
        return "its weights are not downloaded yet"
    model = ModelInfo.load(directory)
    if (model.num_hidden_layers or 0) > MOST_LAYERS:
        return f"num_hidden_layers={model.num_hidden_layers} are more than the {MOST_LAYERS} that it takes"
    stored = () if dummy else tensors_of(WeightsOnDisk(directory, stamp_of(directory)))
    if len(stored) > MOST_TENSORS:
        return f"the model's {len(stored)} tensors are more than the {MOST_TENSORS} that it takes"
    quantization = quantization_of(config, model)
    if quantization is not None and quantization.library_scheme is not None:
        return f"{quantization.method} reads the weights while it makes the model"
    return None


def try_load(verdict: Verdict) -> str | None:
    """Load the model of a verdict that permits it, as a start does, but for the values of weights, and size
    its KV cache. Returns why it gave up; None where nothing was found.

    Raises what a start raises, in the same words: ConfigError, UnsupportedConfiguration, EngineSetupError. A
    start may still fail for what only values say: NaN, steps that compute something else; and where memory
    holds the KV cache, but not what the largest step takes beside it. Other threads must not load models
    meanwhile.
    """
    from dodona.runners.build import build_runner
    from dodona.runners.kv_room import check_kv_room
    from dodona.runners.kv_transfer.folders import check_folder
    from dodona.runners.meta_device import MOST_CALLS, NeedsValues, TooManyCalls, on_meta
    from dodona.runners.model_files import read_model_files
    from dodona.runners.startup import allocating_weights, checked_limits

    model = Path(verdict.config.model_config.model)
    with _quiet(), naming(f"{model}: the model can't be loaded"), allocating_weights():
        files = read_model_files(verdict.config)
        limits = checked_limits(verdict.config, files.model)
        runner = build_runner(verdict, files.model, limits)
        num_engines = verdict.config.parallel_config.data_parallel_size
        check_folder(resolve_kv_transfer(verdict.config), num_engines=num_engines)
        try:
            with suppress(NeedsValues):
                tried = _try_load(runner)
                with on_meta(asks_host=limits.device == "cpu"):
                    if tried is not None:
                        check_kv_room(tried)
        except TooManyCalls:
            return f"the model takes more than {MOST_CALLS} calls of torch; check the sizes in config.json"
    return None


def _try_load(runner: Runner) -> Runner | None:
    """`runner.try_load()`. Errors that may come of a guess are not believed."""
    from dodona.runners.meta_device import NeedsValues, on_meta

    with _without_threads(), on_meta() as meta:
        try:
            return runner.try_load()
        except Exception as error:
            if meta.has_guessed:
                raise NeedsValues(str(error)) from error
            raise


@contextmanager
def _without_threads() -> Iterator[None]:
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave away what libraries and the engine say while they load: the caller prints what matters."""
    from transformers.utils import logging as transformers_logging

    engine, names = logging.getLogger("dodona.engine"), transformers_logging
    levels = engine.level, names.get_verbosity()
    engine.setLevel(logging.ERROR)
    names.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        engine.setLevel(levels[0])
        names.set_verbosity(levels[1])
