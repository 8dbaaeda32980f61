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
from dodona.oracle.systems.own.pooler import PoolingSettings
from dodona.runners.limits import Limits
from dodona.runners.v2.models.projections import QuantizedPart
from dodona.runners.v2.models.shares import TensorShare
from dodona.runners.v2.models.spec import ModelSpec, make_dense_spec, make_score_spec
from dodona.runners.v2.models.weights import (
    ModelWeights,
    dense_checkpoint_shares,
    dense_checkpoint_views,
    dense_quantized_parts,
)


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """How models of one architecture are described and loaded."""

    make_spec: Callable[[str, ModelInfo, Limits], ModelSpec]
    """(architecture, model, limits) → the numbers of the model."""
    checkpoint_views: Callable[[ModelSpec, ModelWeights], dict[str, torch.Tensor]] = dense_checkpoint_views
    """(spec, weights) → each tensor name of a checkpoint and the part of the weights that it fills, but for
    quantized layers."""
    checkpoint_shares: Callable[[ModelSpec], dict[str, TensorShare]] = dense_checkpoint_shares
    """(spec) → each tensor name of a checkpoint of which a rank of several reads a part, and that part."""
    quantized_parts: Callable[[ModelSpec, ModelWeights], dict[str, QuantizedPart]] = dense_quantized_parts
    """(spec, weights) → each quantized layer's name and the part of the weights that it fills."""


MODEL_FAMILIES: Mapping[str, ModelFamily] = {
    "Qwen3ForCausalLM": ModelFamily(partial(make_dense_spec, qk_norm=True)),
    # transformers' Llama has no sliding window, whatever its config.json holds.
    "LlamaForCausalLM": ModelFamily(partial(make_dense_spec, has_window=False)),
    "MistralForCausalLM": ModelFamily(make_dense_spec),
}


POOLING_FAMILIES: Mapping[str, ModelFamily] = {
    name.removesuffix("ForCausalLM") + kind: family
    for name, family in MODEL_FAMILIES.items()
    for kind in ("ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification")
}
"""The same for models that pool: each family's classes without an output layer, or with a classifier's."""


def make_spec(
    model: ModelInfo,
    limits: Limits,
    quantization: QuantizationConfig | None = None,
    pooling: PoolingSettings | None = None,
) -> ModelSpec:
    """The spec of a supported model (see `capabilities.check_supported`).

    pooling: how it is served for pooling; None where it generates.

    Raises ConfigError that names file and field where config.json lacks a number, or asks for what can't be.
    """
    families = MODEL_FAMILIES if pooling is None else POOLING_FAMILIES
    architecture = next(name for name in model.architectures if name in families)
    spec = replace(families[architecture].make_spec(architecture, model, limits), quantization=quantization)
    if pooling is None:
        return spec
    return replace(spec, has_lm_head=False, score=make_score_spec(model, pooling))


def _family(spec: ModelSpec) -> ModelFamily:
    return (MODEL_FAMILIES if spec.has_lm_head else POOLING_FAMILIES)[spec.architecture]


def checkpoint_views(spec: ModelSpec, weights: ModelWeights) -> dict[str, torch.Tensor]:
    """Each tensor name of a checkpoint → the part of the fused weights that it fills; without those of
    quantized layers."""
    return _family(spec).checkpoint_views(spec, weights)


def checkpoint_shares(spec: ModelSpec) -> dict[str, TensorShare]:
    """By tensor name of a checkpoint, the part that this rank's view of it holds; other views hold all."""
    return _family(spec).checkpoint_shares(spec)


def quantized_parts(spec: ModelSpec, weights: ModelWeights) -> dict[str, QuantizedPart]:
    """Each quantized layer of a checkpoint by its name → the part of the fused weights that it fills."""
    return _family(spec).quantized_parts(spec, weights)
