"""A model in memory: what `load_model` makes, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import triton

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.runners.drafting.plan import DraftPlan, plan_drafting
from dodona.runners.limits import Limits
from dodona.runners.machine import torch_environment
from dodona.runners.v2 import capabilities
from dodona.runners.v2.loading.loader import fill_randomly, has_own_head, load_safetensors
from dodona.runners.v2.loading.quantized import fill_parts_randomly
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.registry import checkpoint_views, make_spec, quantized_parts
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.v2.models.weights import allocate_weights
from dodona.runners.weights.source import weights_directory


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model whose weights are on the device."""

    spec: ModelSpec
    model: DenseModel
    plan: DraftPlan | None
    """How tokens are drafted."""


def load(config: EngineConfig, info: ModelInfo, limits: Limits) -> Loaded:
    """Read a model's weights onto the device.

    Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError where
    config.json or the weights are not as they must be, or speculative_config can't be served.
    """
    check = partial(
        capabilities.check_supported,
        environment=torch_environment(limits.device),
        interpreted=limits.device == "cpu" and bool(triton.knobs.runtime.interpret),
    )
    lacking = check(config, info)
    if lacking:
        raise UnsupportedConfiguration.lacking("v2", *lacking)
    plan = plan_drafting(config, info, limits, runner="v2", lacks_of_draft=check)
    spec = make_spec(info, limits, quantization_of(config, info))
    directory = weights_directory(config, info, None)
    if spec.tie_word_embeddings and directory is not None and has_own_head(directory):
        spec = replace(spec, tie_word_embeddings=False)
    loaded = Loaded(spec, DenseModel(spec, allocate_weights(spec, torch.device(limits.device))), plan)
    read_weights(loaded, directory, seed=config.model_config.seed)
    return loaded


def read_weights(loaded: Loaded, path: Path | None, *, seed: int) -> None:
    """Fill the weights from a directory's safetensors, or (None) with random numbers; in place.

    Raises ConfigError, before the first write, that names the tensor which does not fit.
    """
    views = checkpoint_views(loaded.spec, loaded.model.weights)
    parts = quantized_parts(loaded.spec, loaded.model.weights)
    if path is None:
        fill_randomly(views, seed=seed)
        fill_parts_randomly(parts, seed=seed)
    else:
        load_safetensors(path, views, parts, tied=loaded.spec.tie_word_embeddings)
