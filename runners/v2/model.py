"""The forward pass of a dense decoder: Qwen3, Llama and Mistral differ only in what `ModelSpec` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from dodona.kernels.activation import silu_and_mul
from dodona.kernels.attention_decode import (
    choose_num_splits,
    decode_attention_from_qkv,
    paged_decode_attention,
)
from dodona.kernels.attention_prefill import paged_prefill_attention
from dodona.kernels.fused_linear import fused_linear
from dodona.kernels.rms_norm import add_rms_norm, rms_norm
from dodona.kernels.rotary import qk_norm_rope_kv_write
from dodona.runners.v2.rope import cos_sin_table
from dodona.runners.v2.spec import ModelSpec
from dodona.runners.v2.weights import LayerWeights, ModelWeights


@dataclass(frozen=True, slots=True, eq=False)
class ForwardInputs:
    """One step's packed tokens and what attention must know of their sequences. Tensors are int32 on the
    device."""

    input_ids: torch.Tensor
    """[tokens]."""
    positions: torch.Tensor
    """[tokens]: position in the sequence."""
    slots: torch.Tensor
    """[tokens]: KV slot, or -1 for padding."""
    rows: torch.Tensor
    """[batch]: state row of each sequence, or -1 for padding (among decodes only)."""
    query_start: torch.Tensor
    """[batch + 1]: where each sequence's tokens start."""
    seq_lens: torch.Tensor
    """[batch]: tokens of each sequence after this step."""
    block_table: torch.Tensor
    """[state rows, max blocks]."""
    arrivals: torch.Tensor
    """[batch * num_kv_heads or more]: zeros, for decode attention to count in."""
    num_decodes: int
    """Leading sequences with one token each."""
    max_prefill_len: int
    """Longest chunk of the other sequences; 0 where there are none."""


class DenseModel:
    """Weights and the computation over them. It holds no state of requests."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        device = weights.embedding.device
        self.spec = spec
        self.weights = weights
        self._cos_sin = cos_sin_table(spec.rope, spec.head_size, spec.max_model_len).to(device)
        self._scale = spec.head_size**-0.5
        self._num_multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        )

    def forward(
        self,
        inputs: ForwardInputs,
        kv_caches: Sequence[torch.Tensor],
        *,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states, normalised: [tokens, hidden]. Writes the tokens' keys and values into
        `kv_caches`.

        Args:
            inputs: the step.
            kv_caches: one per layer, [num_blocks, 2, num_kv_heads, block_size, head_size].
            wanted: [n], packed indices of the tokens to return: [n, hidden]; None for all. What the last
                layer computes of the others, beside keys and values, is left out.
        """
        residual = functional.embedding(inputs.input_ids, self.weights.embedding)
        if residual.shape[0] == 1 and not inputs.max_prefill_len:
            return self._forward_one(residual, inputs, kv_caches)
        eps = self.spec.norm_eps
        last = len(self.weights.layers) - 1
        update: torch.Tensor | None = None
        for i, layer in enumerate(self.weights.layers):
            if update is None:
                hidden = rms_norm(x=residual, weight=layer.input_norm, eps=eps)
            else:
                hidden = add_rms_norm(x=update, residual=residual, weight=layer.input_norm, eps=eps)
            attended = self._attention(layer, functional.linear(hidden, layer.qkv), inputs, kv_caches[i])
            if i == last and wanted is not None:
                attended = torch.index_select(attended, 0, wanted)
                residual = torch.index_select(residual, 0, wanted)
            update = functional.linear(attended, layer.o)
            hidden = add_rms_norm(x=update, residual=residual, weight=layer.post_norm, eps=eps)
            gated = silu_and_mul(gate_up=functional.linear(hidden, layer.gate_up))
            update = functional.linear(gated, layer.down)
        assert update is not None  # a model has layers
        return add_rms_norm(x=update, residual=residual, weight=self.weights.final_norm, eps=eps)

    def logits(self, hidden: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, vocab] in the model's dtype for hidden states [n, hidden]; written into `out` where given."""
        if hidden.shape[0] == 1:
            return fused_linear(x=hidden, weight=self.weights.lm_head, out=out)
        return torch.mm(hidden, self.weights.lm_head.t(), out=out)

    def _forward_one(
        self, residual: torch.Tensor, inputs: ForwardInputs, kv_caches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """A decode step of one token, from its embedding: five launches per layer."""
        eps = self.spec.norm_eps
        for i, layer in enumerate(self.weights.layers):
            qkv = fused_linear(x=residual, weight=layer.qkv, norm_weight=layer.input_norm, eps=eps)
            attended = self._attention(layer, qkv, inputs, kv_caches[i])
            residual = fused_linear(x=attended, weight=layer.o, residual=residual)
            gated = fused_linear(
                x=residual, weight=layer.gate_up, norm_weight=layer.post_norm, eps=eps, silu_mul=True
            )
            residual = fused_linear(x=gated, weight=layer.down, residual=residual)
        return rms_norm(x=residual, weight=self.weights.final_norm, eps=eps)

    def _attention(
        self,
        layer: LayerWeights,
        qkv: torch.Tensor,
        inputs: ForwardInputs,
        kv_cache: torch.Tensor,
    ) -> torch.Tensor:
        """[tokens, q heads * head size] from the qkv projection, which is overwritten."""
        spec, decodes = self.spec, inputs.num_decodes
        splits = choose_num_splits(
            batch=decodes, num_kv_heads=spec.num_kv_heads, num_multiprocessors=self._num_multiprocessors
        )
        if not inputs.max_prefill_len:
            return decode_attention_from_qkv(
                qkv=qkv,
                positions=inputs.positions,
                slots=inputs.slots,
                cos_sin=self._cos_sin,
                q_weight=layer.q_norm,
                k_weight=layer.k_norm,
                eps=spec.norm_eps,
                num_q_heads=spec.num_q_heads,
                kv_cache=kv_cache,
                block_table=inputs.block_table,
                rows=inputs.rows,
                seq_lens=inputs.seq_lens,
                scale=self._scale,
                window=spec.window,
                num_splits=splits,
                arrivals=inputs.arrivals,
            ).view(decodes, -1)
        q = qk_norm_rope_kv_write(
            qkv=qkv,
            positions=inputs.positions,
            slots=inputs.slots,
            cos_sin=self._cos_sin,
            kv_cache=kv_cache,
            num_q_heads=spec.num_q_heads,
            q_weight=layer.q_norm,
            k_weight=layer.k_norm,
            eps=spec.norm_eps,
        )
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if decodes:
            paged_decode_attention(
                q=q[:decodes],
                kv_cache=kv_cache,
                block_table=inputs.block_table,
                rows=inputs.rows[:decodes],
                seq_lens=inputs.seq_lens[:decodes],
                scale=self._scale,
                window=spec.window,
                num_splits=splits,
                arrivals=inputs.arrivals,
                out=out[:decodes],
            )
        paged_prefill_attention(
            q=q,
            kv_cache=kv_cache,
            block_table=inputs.block_table,
            rows=inputs.rows[decodes:],
            query_start=inputs.query_start[decodes:],
            seq_lens=inputs.seq_lens[decodes:],
            max_query_len=inputs.max_prefill_len,
            scale=self._scale,
            window=spec.window,
            out=out,
        )
        return out.view(out.shape[0], -1)
