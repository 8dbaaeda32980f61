"""The layers of a draft head of the EAGLE family by V2's kernels: `HeadLayers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dodona.kernels.attention.arguments import AttentionShape, QKNorm
from dodona.kernels.attention.attended_linear import attended_linear
from dodona.kernels.attention.splits import AttentionParts
from dodona.kernels.linear.activation import silu_and_mul
from dodona.kernels.linear.joined_norms import joined_norms
from dodona.kernels.linear.rms_norm import add_rms_norm, rms_norm
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.drafting.head import DraftHead, HeadLayer, RMSNorm
from dodona.runners.v2.attention import Attention
from dodona.runners.v2.models.projections import max_small_batch, project_small_batch


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer and its fused weights, which share memory with the layer's own."""

    layer: HeadLayer
    input_norm: Tensor | None
    """None for EAGLE's first layer; of the embedding, where the layer is wide."""
    qkv: Tensor
    qkv_bias: Tensor | None
    norm: QKNorm | None
    gate_up: Tensor
    gate_up_bias: Tensor | None


class HeadLayers:
    """The computation of a head in steps of V2, over weights that it fuses.

    Args:
        head: on the device; its linear layers get new memory.
        shape: of its attention.
        max_positions: that entries may have.
        dtype: of its weights.
    """

    def __init__(
        self, head: DraftHead, shape: AttentionShape, *, max_positions: int, dtype: torch.dtype
    ) -> None:
        self._head = head
        self._eps = float(head.config.rms_norm_eps)
        self._layers = [_fused(layer, self._eps) for layer in head.layers if isinstance(layer, HeadLayer)]
        self._final_norm = head.norm.weight if isinstance(head.norm, RMSNorm) else None
        device, size = head.device, shape.head_size
        self._attention = Attention(
            shape=shape, dtype=dtype, cos_sin=_cos_sin(head, max_positions, size, device)
        )
        self._is_silu = head.config.hidden_act == "silu"
        linear = [module for module in head.layers.modules() if isinstance(module, nn.Linear)]
        lm_head = head.lm_head.weight
        assert isinstance(lm_head, Tensor)  # of a linear layer
        self._lm_head = lm_head
        self._max_small_batch = 0
        """Most entries that fused kernels compute."""
        if self._is_silu and all(module.bias is None for module in linear):
            weights = [*(module.weight for module in linear), lm_head]
            self._max_small_batch = max_small_batch(
                weights, head.config.hidden_size, device=device, dtype=dtype
            )
        drafted = head.head.draft_vocab_size
        self.vocabulary = None if drafted == head.head.vocab_size else head.targets
        """[draft vocabulary] int64: the tokens of `logits`; None: all."""

    def features(self, hidden: Tensor) -> Tensor:
        """See `DraftHead.features`."""
        head, fc = self._head.head, self._head.fc
        is_plain = head.is_eagle3 and not (head.norm_before_fc or head.fc_norm) and fc.bias is None
        if is_plain and len(hidden) <= self._max_small_batch:
            return project_small_batch(x=hidden, weight=fc.weight)
        return self._head.features(hidden)

    def next_features(self, output: Tensor) -> Tensor:
        """See `DraftHead.next_features`."""
        if not self._head.head.norm_output or self._final_norm is None:
            return output
        return rms_norm(x=output, weight=self._final_norm, eps=self._eps)

    def logits(self, output: Tensor) -> Tensor:
        """[n, size], the layers' output -> [n, draft vocabulary]."""
        weight, norm = self._lm_head, self._final_norm
        if 0 < len(output) <= self._max_small_batch:
            return project_small_batch(x=output, weight=weight, norm_weight=norm, eps=self._eps)
        normed = output if norm is None else rms_norm(x=output, weight=norm, eps=self._eps)
        return functional.linear(normed, weight)

    def forward(
        self, inputs: ForwardInputs, token_ids: Tensor, features: Tensor, caches: Sequence[Tensor]
    ) -> Tensor:
        """The layers' output [tokens, size]; writes keys and values of all tokens into `caches`.

        Args:
            inputs: where the entries are.
            token_ids: [tokens] int32.
            features: [tokens, size], contiguous; may be overwritten.
            caches: one per layer, [num_blocks, 2, num_kv_heads, block_size, head_size].
        """
        is_small = inputs.num_tokens <= self._max_small_batch and not inputs.max_prefill_len
        residual = features
        if not self._head.head.is_eagle3:
            embedded = functional.embedding(token_ids, self._head.embed_tokens.weight)  # type: ignore[arg-type]
            residual = self._head.fc(torch.cat([embedded, features], dim=-1))
        if is_small:
            attention = self._attention.plan_small_batch(inputs, leave_parts=True)
        else:
            attention = self._attention.plan(inputs)
        for one, kv_cache in zip(self._layers, caches, strict=True):
            layer = one.layer
            if layer.wide:
                x, norm = self._joined(one, token_ids, residual), None
                if layer.norm_before_residual:
                    residual = x[:, residual.shape[1] :].contiguous()
            else:
                x, norm = residual, one.input_norm
            if is_small:
                qkv = project_small_batch(x=x, weight=one.qkv, norm_weight=norm, eps=self._eps)
            else:
                normed = x if norm is None else rms_norm(x=x, weight=norm, eps=self._eps)
                qkv = functional.linear(normed, one.qkv, one.qkv_bias)
            attended = attention.attend(qkv=qkv, norm=one.norm, kv_cache=kv_cache)
            residual = self._after_attention(one, attended, residual, is_small=is_small)
        return residual

    def _joined(self, one: _Layer, token_ids: Tensor, features: Tensor) -> Tensor:
        assert one.input_norm is not None  # of every layer but EAGLE's first
        embedding = self._head.embed_tokens.weight
        assert isinstance(embedding, Tensor)
        return joined_norms(
            token_ids=token_ids,
            embedding=embedding,
            features=features,
            embedding_norm=one.input_norm,
            features_norm=one.layer.hidden_norm.weight,
            eps=self._eps,
        )

    def _after_attention(
        self, one: _Layer, attended: Tensor | AttentionParts, residual: Tensor, *, is_small: bool
    ) -> Tensor:
        """The layer's output, in the place of `residual`."""
        o, mlp, norm = one.layer.self_attn.o_proj, one.layer.mlp, one.layer.post_attention_layernorm.weight
        if is_small:
            if isinstance(attended, AttentionParts):
                residual = attended_linear(parts=attended, weight=o.weight, residual=residual)
            else:
                residual = project_small_batch(x=attended, weight=o.weight, residual=residual)
            gated = project_small_batch(
                x=residual, weight=one.gate_up, norm_weight=norm, eps=self._eps, silu_mul=True
            )
            return project_small_batch(x=gated, weight=mlp.down_proj.weight, residual=residual)
        assert isinstance(attended, Tensor)  # only a small batch leaves parts
        hidden = add_rms_norm(x=o(attended), residual=residual, weight=norm, eps=self._eps)
        gate_up = functional.linear(hidden, one.gate_up, one.gate_up_bias)
        if self._is_silu:
            gated = silu_and_mul(gate_up=gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            gated = mlp.act(gate) * up
        return residual.add_(mlp.down_proj(gated))


def _fused(layer: HeadLayer, eps: float) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norm = None
    if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
        norm = QKNorm(attention.q_norm.weight, attention.k_norm.weight, eps)
    qkv, qkv_bias = _joined_linear([attention.q_proj, attention.k_proj, attention.v_proj])
    gate_up, gate_up_bias = _joined_linear([mlp.gate_proj, mlp.up_proj])
    input_norm = layer.input_layernorm
    return _Layer(
        layer=layer,
        input_norm=input_norm.weight if isinstance(input_norm, RMSNorm) else None,
        qkv=qkv,
        qkv_bias=qkv_bias,
        norm=norm,
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
    )


def _joined_linear(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of all of them, one below the other; the modules' own become parts of these."""
    weight = torch.cat([module.weight for module in modules])
    bias = None if modules[0].bias is None else torch.cat([module.bias for module in modules])
    begin = 0
    for module in modules:
        end = begin + module.out_features
        module.weight = nn.Parameter(weight[begin:end], requires_grad=False)
        if bias is not None:
            module.bias = nn.Parameter(bias[begin:end], requires_grad=False)
        begin = end
    return weight, bias


def _cos_sin(head: DraftHead, count: int, head_size: int, device: torch.device) -> Tensor:
    """[count, head_size] float32: cosines of each position's angles, then their sines."""
    positions = torch.arange(count, device=device)[None]
    cos, sin = head.rotary(torch.empty(0, dtype=torch.float32, device=device), positions)
    half = head_size // 2
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1).float().contiguous()
