"""A model in memory: what `load_model` makes, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.limits import Limits
from dodona.runners.machine import torch_environment
from dodona.runners.v2 import capabilities
from dodona.runners.v2.loading.loader import fill_randomly, load_safetensors
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.registry import checkpoint_views, make_spec
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.v2.models.weights import allocate_weights


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model whose weights are on the device."""

    spec: ModelSpec
    model: DenseModel


def load(config: EngineConfig, info: ModelInfo, limits: Limits) -> Loaded:
    """Read a model's weights onto the device.

    Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError where
    config.json or the weights are not as they must be.
    """
    interpreted = limits.device == "cpu" and bool(triton.knobs.runtime.interpret)
    lacking = capabilities.check_supported(
        config, info, torch_environment(limits.device), interpreted=interpreted
    )
    if lacking:
        raise UnsupportedConfiguration.lacking("v2", *lacking)
    spec = make_spec(info, limits)
    loaded = Loaded(spec, DenseModel(spec, allocate_weights(spec, torch.device(limits.device))))
    read_weights(loaded, config)
    return loaded


def read_weights(loaded: Loaded, config: EngineConfig) -> None:
    """Read the weights, again or for the first time, in place."""
    model_config = config.model_config
    views = checkpoint_views(loaded.spec, loaded.model.weights)
    if config.load_config.load_format == "dummy":
        fill_randomly(views, seed=model_config.seed)
        return
    path = locate_or_download(model_config.model, revision=model_config.revision, weights=True)
    load_safetensors(path, views, tied=loaded.spec.tie_word_embeddings)
