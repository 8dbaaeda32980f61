"""A model's weights in the fused form that V2 computes with, and their names in Hugging Face checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dodona.oracle.models.quantization import WeightScheme
from dodona.runners.quantization.formats import LinearShape
from dodona.runners.v2.models.projections import (
    Projection,
    QuantizedPart,
    QuantizedProjection,
    empty_projection,
)
from dodona.runners.v2.models.shares import TensorShare
from dodona.runners.v2.models.spec import ModelSpec, layer_cuts


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One decoder layer. Projections are [out, in], dense or quantized."""

    input_norm: torch.Tensor
    """[hidden]."""
    qkv: Projection
    """[(q heads + 2 kv heads) * head size, hidden]: queries, keys, values."""
    q_norm: torch.Tensor | None
    """[head size], where the model normalises queries and keys."""
    k_norm: torch.Tensor | None
    o: Projection
    """[hidden, q heads * head size]."""
    post_norm: torch.Tensor
    """[hidden]."""
    gate_up: Projection
    """[2 * intermediate, hidden]: gate, up."""
    down: Projection
    """[hidden, intermediate]."""

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four."""
        return (self.qkv, self.o, self.gate_up, self.down)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreWeights:
    """The last layer of a classifier."""

    weight: torch.Tensor
    """[classes, hidden]."""
    bias: torch.Tensor | None
    """[classes]."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """All weights of a model, on one device; what is not quantized in one dtype."""

    embedding: torch.Tensor
    """[vocab, hidden]."""
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    """[hidden]."""
    lm_head: torch.Tensor
    """[vocab, hidden]; the same tensor as `embedding` where the two are tied, and where nothing is
    generated."""
    score: ScoreWeights | None = None


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_O = ("self_attn.o_proj",)
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj",)
"""Module names of the linear layers that a projection consists of, within a layer."""


def _qkv_rows(spec: ModelSpec) -> tuple[int, int, int]:
    kv_size = spec.num_kv_heads * spec.head_size
    return spec.num_q_heads * spec.head_size, kv_size, kv_size


def _scheme(spec: ModelSpec, layer: int, name: str) -> WeightScheme | None:
    if spec.quantization is None:
        return None
    return spec.quantization.scheme_of(f"model.layers.{layer}.{name}")


def allocate_weights(spec: ModelSpec, device: torch.device) -> ModelWeights:
    """Uninitialised weights."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=spec.dtype, device=device)

    def projection(layer: int, names: tuple[str, ...], rows: tuple[int, ...], inner: int) -> Projection:
        scheme = _scheme(spec, layer, names[0])
        return empty_projection(scheme, rows, inner, dtype=spec.dtype, device=device)

    hidden, attended = spec.hidden_size, spec.num_q_heads * spec.head_size

    def layer(i: int) -> LayerWeights:
        return LayerWeights(
            input_norm=empty(spec.hidden_size),
            qkv=projection(i, _QKV, _qkv_rows(spec), hidden),
            q_norm=empty(spec.head_size) if spec.qk_norm else None,
            k_norm=empty(spec.head_size) if spec.qk_norm else None,
            o=projection(i, _O, (hidden,), attended),
            post_norm=empty(spec.hidden_size),
            gate_up=projection(i, _GATE_UP, (spec.intermediate_size,) * 2, hidden),
            down=projection(i, _DOWN, (hidden,), spec.intermediate_size),
        )

    embedding, score = empty(spec.vocab_size, spec.hidden_size), spec.score
    has_own_head = spec.has_lm_head and not spec.tie_word_embeddings
    return ModelWeights(
        embedding=embedding,
        layers=tuple(layer(i) for i in range(spec.num_layers)),
        final_norm=empty(spec.hidden_size),
        lm_head=empty(spec.vocab_size, spec.hidden_size) if has_own_head else embedding,
        score=None
        if score is None
        else ScoreWeights(
            empty(score.num_labels, spec.hidden_size), empty(score.num_labels) if score.has_bias else None
        ),
    )


def dense_checkpoint_views(spec: ModelSpec, weights: ModelWeights) -> dict[str, torch.Tensor]:
    """Each tensor name of a dense decoder's checkpoint → the part of the fused weights that it fills."""
    views = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.final_norm}
    if spec.has_lm_head and not spec.tie_word_embeddings:
        views["lm_head.weight"] = weights.lm_head
    if weights.score is not None:
        views["score.weight"] = weights.score.weight
        if weights.score.bias is not None:
            views["score.bias"] = weights.score.bias
    for i, layer in enumerate(weights.layers):
        prefix = f"model.layers.{i}."
        views |= {
            prefix + "input_layernorm.weight": layer.input_norm,
            prefix + "post_attention_layernorm.weight": layer.post_norm,
        }
        for names, rows, projection in _projections(spec, layer):
            if isinstance(projection, torch.Tensor):
                parts = torch.split(projection, list(rows))
                views |= {f"{prefix}{name}.weight": part for name, part in zip(names, parts, strict=True)}
        if layer.q_norm is not None and layer.k_norm is not None:
            views[prefix + "self_attn.q_norm.weight"] = layer.q_norm
            views[prefix + "self_attn.k_norm.weight"] = layer.k_norm
    return views


def dense_checkpoint_shares(spec: ModelSpec) -> dict[str, TensorShare]:
    """By the name of a weight, what a rank of several has of those that are split; it has others whole."""
    share = spec.share
    if share.ranks == 1:
        return {}
    return {
        f"model.layers.{layer}.{name}.weight": TensorShare(
            cut.dim, cut.parts, share.index * cut.parts // share.ranks
        )
        for layer in range(spec.num_layers)
        for name, cut in layer_cuts(spec).items()
    }


def dense_quantized_parts(spec: ModelSpec, weights: ModelWeights) -> dict[str, QuantizedPart]:
    """Each quantized linear layer of a dense decoder's checkpoint → what it fills."""
    found: dict[str, QuantizedPart] = {}
    shares = dense_checkpoint_shares(spec)
    for i, layer in enumerate(weights.layers):
        for names, rows, projection in _projections(spec, layer):
            if not isinstance(projection, QuantizedProjection):
                continue
            start = 0
            for name, count in zip(names, rows, strict=True):
                scheme, module = _scheme(spec, i, name), f"model.layers.{i}.{name}"
                assert scheme is not None  # all layers of a projection have one scheme
                target, share = projection.weight.slice_rows(start, count), shares.get(f"{module}.weight")
                own = (count, projection.weight.inner)
                whole, inner = own if share is None else share.whole(own)
                shape = LinearShape(module, whole, inner)
                found[module] = QuantizedPart(scheme, shape, target, share)
                start += count
    return found


def _projections(
    spec: ModelSpec, layer: LayerWeights
) -> tuple[tuple[tuple[str, ...], tuple[int, ...], Projection], ...]:
    """(names of linear layers, their rows, the projection) of a layer."""
    return (
        (_QKV, _qkv_rows(spec), layer.qkv),
        (_O, (spec.hidden_size,), layer.o),
        (_GATE_UP, (spec.intermediate_size,) * 2, layer.gate_up),
        (_DOWN, (spec.hidden_size,), layer.down),
    )


def quantized_tensors(weights: ModelWeights) -> dict[str, torch.Tensor]:
    """The tensors of the quantized projections, by names of their own."""
    return {
        f"layers.{i}.{j}.{k}": tensor
        for i, layer in enumerate(weights.layers)
        for j, projection in enumerate(layer.projections)
        if isinstance(projection, QuantizedProjection)
        for k, tensor in enumerate(projection.tensors())
    }
