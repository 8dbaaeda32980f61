"""`ModelSpec`: the numbers of one model that V2's code works with, from config.json and the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import QuantizationConfig
from dodona.oracle.models.quantized_shares import Cut, dense_cuts, share_fault
from dodona.oracle.systems.own.pooler import PoolingSettings
from dodona.runners.interface import KVCacheSpec, KVPart, LayerKVSpec
from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding over whole heads: "default", or "llama3" with its parameters."""

    rope_type: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """The linear layer of a classifier, over hidden states."""

    num_labels: int
    has_bias: bool
    of_last_token: bool
    """Whether it classifies sequences, by their last token; else each token."""
    pad_token_id: int | None
    """A token that is not the last one of a sequence."""


@dataclass(frozen=True, slots=True)
class RankShare:
    """Which part of each layer a rank of several has."""

    index: int
    ranks: int
    kv_parts: int
    """Parts of the KV heads; fewer than ranks where neighbours hold the same head."""

    @property
    def kv_index(self) -> int:
        """Which of `kv_parts` it has."""
        return self.index * self.kv_parts // self.ranks

    @property
    def is_first_with_kv(self) -> bool:
        """Whether no rank before it has the same KV heads."""
        return self.index % (self.ranks // self.kv_parts) == 0


WHOLE = RankShare(0, 1, 1)
"""One rank has all of each layer."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A dense decoder: RMSNorm before attention and MLP, rotary positions, grouped queries, gated SiLU MLP,
    no biases.

    Of a rank of several, heads and intermediate size are those of its share.
    """

    architecture: str
    """Its name in the registry of models."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_size: int
    norm_eps: float
    qk_norm: bool
    """Whether queries and keys are normalised per head (Qwen3)."""
    tie_word_embeddings: bool
    window: int | None
    """Most recent tokens that a query sees (itself included), or None for all."""
    rope: RopeSpec
    dtype: torch.dtype
    max_model_len: int
    quantization: QuantizationConfig | None = None
    """How linear layers are quantized; None: they are not."""
    has_lm_head: bool = True
    """Whether it generates; a pooling model has no output layer."""
    score: ScoreSpec | None = None
    """A classifier's."""
    share: RankShare = WHOLE
    """What this rank has of each layer."""

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_q_heads + 2 * self.num_kv_heads) * self.head_size

    def kv_cache_spec(self, block_size: int) -> KVCacheSpec:
        """What a KV block of `block_size` tokens holds."""
        layer = LayerKVSpec(self.num_kv_heads, self.head_size, self.head_size, self.window)
        return KVCacheSpec((layer,) * self.num_layers, block_size, self.dtype.itemsize)

    @property
    def kv_part(self) -> KVPart:
        """What this rank has of each KV block."""
        share = self.share
        heads = self.num_kv_heads * share.kv_parts
        layer = LayerKVSpec(heads, self.head_size, self.head_size, self.window)
        return KVPart(
            layers=(layer,) * self.num_layers,
            first_layer=0,
            num_layers=self.num_layers,
            head_share=share.kv_index,
            head_shares=share.kv_parts,
            is_writer=share.is_first_with_kv,
        )


def make_dense_spec(
    architecture: str, model: ModelInfo, limits: Limits, *, qk_norm: bool = False, has_window: bool = True
) -> ModelSpec:
    """The spec of a dense decoder.

    Raises ConfigError that names file and field where config.json lacks a number, or asks for what can't be.

    Args:
        architecture: its name in the registry of models.
        model: its config.json.
        limits: what dtype and max_model_len were resolved to.
        qk_norm: whether queries and keys are normalised per head.
        has_window: whether config.json's sliding window counts.
    """
    return ModelSpec(
        architecture=architecture,
        vocab_size=_size(model, "vocab_size"),
        hidden_size=_size(model, "hidden_size"),
        intermediate_size=_size(model, "intermediate_size"),
        num_layers=_size(model, "num_hidden_layers"),
        num_q_heads=_size(model, "num_attention_heads"),
        num_kv_heads=_size(model, "num_key_value_heads"),
        head_size=_size(model, "head_size"),
        norm_eps=_number(model, model.text, "rms_norm_eps"),
        qk_norm=qk_norm,
        tie_word_embeddings=model.tie_word_embeddings,
        window=model.sliding_window if has_window else None,
        rope=_rope(model),
        dtype=getattr(torch, limits.dtype),
        max_model_len=limits.max_model_len,
    )


def share_spec(spec: ModelSpec, index: int, ranks: int) -> ModelSpec:
    """The spec of rank `index`: an equal part of the query heads, KV heads and inner sizes of `spec`, which
    is that of one rank. Where there are fewer KV heads than ranks, neighbours have the same one.

    Raises UnsupportedConfiguration where the sizes do not divide, or parts would not hold whole groups of
    quantized weights.
    """
    if ranks == 1:
        return spec
    kv_parts = min(ranks, spec.num_kv_heads)
    for name, size, parts in (
        ("query heads", spec.num_q_heads, ranks),
        ("KV heads", spec.num_kv_heads, kv_parts),
        ("intermediate_size", spec.intermediate_size, ranks),
        ("tensor_parallel_size", ranks, kv_parts),
    ):
        if size % parts:
            why = f"{name}: {size} does not divide by {parts}; lower tensor_parallel_size"
            raise UnsupportedConfiguration.lacking("v2", "tensor-parallel-sizes", why=why)
    shared = replace(
        spec,
        num_q_heads=spec.num_q_heads // ranks,
        num_kv_heads=spec.num_kv_heads // kv_parts,
        intermediate_size=spec.intermediate_size // ranks,
        share=RankShare(index, ranks, kv_parts),
    )
    if spec.quantization is not None:
        fault = share_fault(spec.quantization, spec.num_layers, layer_cuts(shared))
        if fault is not None:
            raise UnsupportedConfiguration.lacking("v2", "tensor-parallel-groups", why=fault)
    return shared


def layer_cuts(spec: ModelSpec) -> dict[str, Cut]:
    """How the linear layers of a decoder layer are cut, of which `spec` is a rank's."""
    share, head_size = spec.share, spec.head_size
    return dense_cuts(
        q_size=spec.num_q_heads * share.ranks * head_size,
        kv_size=spec.num_kv_heads * share.kv_parts * head_size,
        width=spec.intermediate_size * share.ranks,
        ranks=share.ranks,
        kv_parts=share.kv_parts,
    )


def make_score_spec(model: ModelInfo, settings: PoolingSettings) -> ScoreSpec | None:
    """The last layer of a pooling model; None where it embeds."""
    if settings.task == "embed":
        return None
    is_of_sequences, padding = settings.task == "classify", model.text.get("pad_token_id")
    return ScoreSpec(
        num_labels=len(settings.labels),
        has_bias=not is_of_sequences and model.text.get("token_classification_bias", True) is True,
        of_last_token=is_of_sequences,
        pad_token_id=padding if isinstance(padding, int) else None,
    )


def _size(model: ModelInfo, field: str) -> int:
    value = getattr(model, field)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{model.file}: field {field!r}: expected a number > 0, got {value!r:.80}")
    return value


def _number(model: ModelInfo, source: Mapping[str, Any], field: str) -> float:
    value = source.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{model.file}: field {field!r}: expected a number, got {value!r:.80}")
    return float(value)


def _rope(model: ModelInfo) -> RopeSpec:
    rope = model.rope
    if rope is None:
        raise ConfigError(
            f"{model.file}: no rotary embedding; expected field 'rope_theta' or 'rope_parameters'"
        )
    if rope.rope_type != "llama3":
        return RopeSpec(rope.rope_type, rope.theta)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (_number(model, rope.parameters, name) for name in names)
    return RopeSpec("llama3", rope.theta, factor, low, high, int(original))
