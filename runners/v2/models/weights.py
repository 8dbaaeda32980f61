"""A model's weights in the fused form that V2 computes with, and their names in Hugging Face checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dodona.runners.v2.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One decoder layer. Projections are [out, in]."""

    input_norm: torch.Tensor
    """[hidden]."""
    qkv: torch.Tensor
    """[(q heads + 2 kv heads) * head size, hidden]: queries, keys, values."""
    q_norm: torch.Tensor | None
    """[head size], where the model normalises queries and keys."""
    k_norm: torch.Tensor | None
    o: torch.Tensor
    """[hidden, q heads * head size]."""
    post_norm: torch.Tensor
    """[hidden]."""
    gate_up: torch.Tensor
    """[2 * intermediate, hidden]: gate, up."""
    down: torch.Tensor
    """[hidden, intermediate]."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """All weights of a model, on one device in one dtype."""

    embedding: torch.Tensor
    """[vocab, hidden]."""
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    """[hidden]."""
    lm_head: torch.Tensor
    """[vocab, hidden]; the same tensor as `embedding` where the two are tied."""


def allocate_weights(spec: ModelSpec, device: torch.device) -> ModelWeights:
    """Uninitialised weights."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=spec.dtype, device=device)

    def layer() -> LayerWeights:
        return LayerWeights(
            input_norm=empty(spec.hidden_size),
            qkv=empty(spec.qkv_size, spec.hidden_size),
            q_norm=empty(spec.head_size) if spec.qk_norm else None,
            k_norm=empty(spec.head_size) if spec.qk_norm else None,
            o=empty(spec.hidden_size, spec.num_q_heads * spec.head_size),
            post_norm=empty(spec.hidden_size),
            gate_up=empty(2 * spec.intermediate_size, spec.hidden_size),
            down=empty(spec.hidden_size, spec.intermediate_size),
        )

    embedding = empty(spec.vocab_size, spec.hidden_size)
    return ModelWeights(
        embedding=embedding,
        layers=tuple(layer() for _ in range(spec.num_layers)),
        final_norm=empty(spec.hidden_size),
        lm_head=embedding if spec.tie_word_embeddings else empty(spec.vocab_size, spec.hidden_size),
    )


def dense_checkpoint_views(spec: ModelSpec, weights: ModelWeights) -> dict[str, torch.Tensor]:
    """Each tensor name of a dense decoder's checkpoint → the part of the fused weights that it fills."""
    views = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.final_norm}
    if not spec.tie_word_embeddings:
        views["lm_head.weight"] = weights.lm_head
    q_size, kv_size = spec.num_q_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    for i, layer in enumerate(weights.layers):
        prefix = f"model.layers.{i}."
        q, k, v = torch.split(layer.qkv, [q_size, kv_size, kv_size])
        gate, up = torch.split(layer.gate_up, spec.intermediate_size)
        views |= {
            prefix + "input_layernorm.weight": layer.input_norm,
            prefix + "self_attn.q_proj.weight": q,
            prefix + "self_attn.k_proj.weight": k,
            prefix + "self_attn.v_proj.weight": v,
            prefix + "self_attn.o_proj.weight": layer.o,
            prefix + "post_attention_layernorm.weight": layer.post_norm,
            prefix + "mlp.gate_proj.weight": gate,
            prefix + "mlp.up_proj.weight": up,
            prefix + "mlp.down_proj.weight": layer.down,
        }
        if layer.q_norm is not None and layer.k_norm is not None:
            views[prefix + "self_attn.q_norm.weight"] = layer.q_norm
            views[prefix + "self_attn.k_norm.weight"] = layer.k_norm
    return views
