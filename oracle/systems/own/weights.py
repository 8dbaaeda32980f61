"""Why a model's weights can't be loaded, as far as their files tell before any tensor is read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.expected_tensors import check_classifier, check_tensors
from dodona.oracle.models.hub import is_to_be_downloaded
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import QuantizationConfig
from dodona.oracle.models.stored_tensors import StoredTensor, stored_tensors
from dodona.oracle.models.weight_files import Stamp, has_weight_files, stamp_of
from dodona.oracle.systems.own.pooler import pooling_settings
from dodona.oracle.systems.own.pooling import pooling_task
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.oracle.systems.own.resolved import resolved_runner_type


def weights_fault(config: EngineConfig, model: ModelInfo, environment: Environment) -> str | None:
    """Why no engine can load the weights; None where nothing is wrong, or they are not looked at (see
    `weights_of`)."""
    try:
        check_weights(config, model, environment)
    except ConfigError as error:
        return str(error)
    return None


def check_weights(config: EngineConfig, model: ModelInfo, environment: Environment) -> None:
    """Raise ConfigError that names the file or the tensor which is missing, damaged or of another shape."""
    found = weights_of(config, config.model_config.model, Path(model.file).parent, environment)
    if found is None:
        return
    classifies = pooling_task(config, model) in ("classify", "token_classify")
    fault = model_fault(
        found,
        model,
        quantization=quantization_of(config, model),
        has_lm_head=resolved_runner_type(config, model) == "generate",
        num_labels=len(pooling_settings(config, model).labels) if classifies else None,
    )
    if fault is not None:
        raise ConfigError(fault)


class WeightsOnDisk(NamedTuple):
    """A directory with weights, as it was at one time."""

    directory: Path
    stamp: Stamp


def weights_of(
    config: EngineConfig, name: str, directory: Path, environment: Environment
) -> WeightsOnDisk | None:
    """Where the weights of a model, or a draft, that is called `name` are.

    None where they are not looked at: they are random, or still to be downloaded, or the question is about
    another machine and there are none here.
    """
    if config.load_config.load_format == "dummy" or not (directory / "config.json").is_file():
        return None
    if not environment.is_here and not has_weight_files(directory):
        return None
    if is_to_be_downloaded(name, directory):
        return None
    return WeightsOnDisk(directory, stamp_of(directory))


def tensors_of(weights: WeightsOnDisk) -> Mapping[str, StoredTensor]:
    """Every tensor of the directory by name; its headers are read once for all facts of a verdict.

    Raises ConfigError that names the file which is missing, cut off or damaged.
    """
    found = _tensors_or_fault(weights)
    if isinstance(found, str):
        raise ConfigError(found)
    return found


@functools.lru_cache(maxsize=8)
def _tensors_or_fault(weights: WeightsOnDisk) -> Mapping[str, StoredTensor] | str:
    try:
        return stored_tensors(weights.directory)
    except ConfigError as error:
        return str(error)


@functools.lru_cache(maxsize=256)
def model_fault(
    weights: WeightsOnDisk,
    model: ModelInfo,
    *,
    quantization: QuantizationConfig | None,
    has_lm_head: bool,
    num_labels: int | None,
) -> str | None:
    """What files or tensors lack of a model, see `check_tensors`; with `num_labels` also of a classifier."""
    try:
        stored = tensors_of(weights)
        check_tensors(weights.directory, model, stored, quantization=quantization, has_lm_head=has_lm_head)
        if num_labels is not None:
            check_classifier(weights.directory, stored, num_labels)
    except ConfigError as error:
        return str(error)
    return None
