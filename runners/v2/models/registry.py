"""The models that V2 has code for, by the names of their architectures in config.json.

`capabilities` reads the names, and a test compares the rule book's list with them. A family that differs from
those here only in numbers or in tensor names is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import QuantizationConfig
from dodona.runners.limits import Limits
from dodona.runners.v2.models.projections import QuantizedPart
from dodona.runners.v2.models.spec import ModelSpec, make_dense_spec
from dodona.runners.v2.models.weights import ModelWeights, dense_checkpoint_views, dense_quantized_parts


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """How models of one architecture are described and loaded."""

    make_spec: Callable[[str, ModelInfo, Limits], ModelSpec]
    """(architecture, model, limits) → the numbers of the model."""
    checkpoint_views: Callable[[ModelSpec, ModelWeights], dict[str, torch.Tensor]] = dense_checkpoint_views
    """(spec, weights) → each tensor name of a checkpoint and the part of the weights that it fills, but for
    quantized layers."""
    quantized_parts: Callable[[ModelSpec, ModelWeights], dict[str, QuantizedPart]] = dense_quantized_parts
    """(spec, weights) → each quantized layer's name and the part of the weights that it fills."""


MODEL_FAMILIES: Mapping[str, ModelFamily] = {
    "Qwen3ForCausalLM": ModelFamily(partial(make_dense_spec, qk_norm=True)),
    # transformers' Llama has no sliding window, whatever its config.json holds.
    "LlamaForCausalLM": ModelFamily(partial(make_dense_spec, has_window=False)),
    "MistralForCausalLM": ModelFamily(make_dense_spec),
}


def make_spec(model: ModelInfo, limits: Limits, quantization: QuantizationConfig | None = None) -> ModelSpec:
    """The spec of a supported model (see `capabilities.check_supported`).

    Raises ConfigError that names file and field where config.json lacks a number, or asks for what can't be.
    """
    architecture = next(name for name in model.architectures if name in MODEL_FAMILIES)
    spec = MODEL_FAMILIES[architecture].make_spec(architecture, model, limits)
    return replace(spec, quantization=quantization)


def checkpoint_views(spec: ModelSpec, weights: ModelWeights) -> dict[str, torch.Tensor]:
    """Each tensor name of a checkpoint → the part of the fused weights that it fills; without those of
    quantized layers."""
    return MODEL_FAMILIES[spec.architecture].checkpoint_views(spec, weights)


def quantized_parts(spec: ModelSpec, weights: ModelWeights) -> dict[str, QuantizedPart]:
    """Each quantized layer of a checkpoint by its name → the part of the fused weights that it fills."""
    return MODEL_FAMILIES[spec.architecture].quantized_parts(spec, weights)
