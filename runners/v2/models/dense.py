"""The forward pass of a dense decoder: Qwen3, Llama and Mistral differ only in what `ModelSpec` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from dodona.kernels.attention.decode import decode_attention_from_qkv, paged_decode_attention
from dodona.kernels.attention.decode_plan import DecodePlan, plan_decode_attention
from dodona.kernels.attention.few import (
    LARGEST_GROUP,
    MOST_FEW_SEQUENCES,
    few_sequences_attention,
    few_sequences_attention_parts,
)
from dodona.kernels.attention.fresh import SHORTEST, fresh_prefill_attention, supports_fresh_prefill
from dodona.kernels.attention.prefill import paged_prefill_attention
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write
from dodona.kernels.attention.stream import supports_streams
from dodona.kernels.linear.activation import silu_and_mul
from dodona.kernels.linear.attended_linear import LARGEST_ATTENDED, attended_linear
from dodona.kernels.linear.few_linear import few_linear, most_tokens, supports_few_linear
from dodona.kernels.linear.fused_linear import fused_linear
from dodona.kernels.linear.rms_norm import add_rms_norm, rms_norm
from dodona.runners.v2.models.rope import cos_sin_table
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.v2.models.weights import LayerWeights, ModelWeights


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
    max_fresh_len: int
    """Longest chunk of the other sequences that begin in this step; 0 where there are none."""
    max_continued_len: int
    """Longest chunk of the other sequences that have tokens before it; 0 where there are none."""
    embedded: torch.Tensor | None = None
    """[tokens, hidden], the model's dtype: the tokens' embeddings, where they were looked up already."""

    @property
    def max_prefill_len(self) -> int:
        """Longest chunk of the other sequences; 0 where there are none."""
        return max(self.max_fresh_len, self.max_continued_len)


class DenseModel:
    """Weights and the computation over them. It holds no state of requests."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        device = weights.embedding.device
        self.spec = spec
        self.weights = weights
        self._cos_sin = cos_sin_table(spec.rope, spec.head_size, spec.max_model_len).to(device)
        self._scale = spec.head_size**-0.5
        self._has_fresh_prefill = supports_fresh_prefill(
            device=device, dtype=spec.dtype, head_size=spec.head_size, window=spec.window
        )
        self._can_stream = supports_streams(device=device, dtype=spec.dtype, head_size=spec.head_size)
        sizes = (spec.hidden_size, spec.num_q_heads * spec.head_size, spec.intermediate_size)
        has_few_linear = supports_few_linear(device=device, dtype=spec.dtype, sizes=sizes)
        self._most_few = most_tokens(spec.hidden_size) if has_few_linear else 1
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
        eps = self.spec.norm_eps
        if self._has_few_tokens(inputs):
            residual = self._forward_few(inputs, kv_caches)
            return rms_norm(x=residual, weight=self.weights.final_norm, eps=eps)
        residual = self._embedded(inputs)
        plan = self._plan(inputs)
        last = len(self.weights.layers) - 1
        update: torch.Tensor | None = None
        for i, layer in enumerate(self.weights.layers):
            if update is None:
                hidden = rms_norm(x=residual, weight=layer.input_norm, eps=eps)
            else:
                hidden = add_rms_norm(x=update, residual=residual, weight=layer.input_norm, eps=eps)
            attended = self._attention(
                layer, functional.linear(hidden, layer.qkv), inputs, kv_caches[i], plan
            )
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

    def decode(
        self, inputs: ForwardInputs, kv_caches: Sequence[torch.Tensor], *, out: torch.Tensor
    ) -> torch.Tensor:
        """`forward` and `logits` of a step of decodes alone: `out`, [tokens, vocab]."""
        if self._has_few_tokens(inputs) and inputs.input_ids.shape[0] == 1:
            weights = self.weights
            return fused_linear(
                x=self._forward_few(inputs, kv_caches),
                weight=weights.lm_head,
                norm_weight=weights.final_norm,
                eps=self.spec.norm_eps,
                out=out,
            )
        return self.logits(self.forward(inputs, kv_caches), out=out)

    def _embedded(self, inputs: ForwardInputs) -> torch.Tensor:
        if inputs.embedded is not None:
            return inputs.embedded
        return functional.embedding(inputs.input_ids, self.weights.embedding)

    def _has_few_tokens(self, inputs: ForwardInputs) -> bool:
        """Whether the step is of decodes so few that reading weights and launches are all that counts."""
        return inputs.input_ids.shape[0] <= self._most_few and not inputs.max_prefill_len

    def _forward_few(self, inputs: ForwardInputs, kv_caches: Sequence[torch.Tensor]) -> torch.Tensor:
        """A step of a few decodes, in five launches per layer: its residual stream before the last norm,
        [tokens, hidden]."""
        eps, spec, tokens = self.spec.norm_eps, self.spec, inputs.input_ids.shape[0]
        linear = fused_linear if tokens == 1 else few_linear
        residual = self._embedded(inputs)
        is_small = tokens <= MOST_FEW_SEQUENCES and spec.num_q_heads // spec.num_kv_heads <= LARGEST_GROUP
        attended_bytes = spec.num_q_heads * spec.head_size * spec.dtype.itemsize
        leaves_parts = is_small and tokens == 1 and attended_bytes <= LARGEST_ATTENDED
        plan = None if is_small else self._plan(inputs)
        for layer, kv_cache in zip(self.weights.layers, kv_caches, strict=True):
            qkv = linear(x=residual, weight=layer.qkv, norm_weight=layer.input_norm, eps=eps)
            if leaves_parts:
                parts = few_sequences_attention_parts(
                    **self._from_qkv(layer, qkv, inputs, kv_cache), window=spec.window
                )
                residual = attended_linear(parts=parts, weight=layer.o, residual=residual)
            else:
                if is_small:
                    attended = few_sequences_attention(
                        **self._from_qkv(layer, qkv, inputs, kv_cache),
                        window=spec.window,
                        arrivals=inputs.arrivals,
                    ).view(tokens, -1)
                else:
                    attended = self._attention(layer, qkv, inputs, kv_cache, plan)
                residual = linear(x=attended, weight=layer.o, residual=residual)
            gated = linear(
                x=residual, weight=layer.gate_up, norm_weight=layer.post_norm, eps=eps, silu_mul=True
            )
            residual = linear(x=gated, weight=layer.down, residual=residual)
        return residual

    def _from_qkv(
        self, layer: LayerWeights, qkv: torch.Tensor, inputs: ForwardInputs, kv_cache: torch.Tensor
    ) -> dict[str, Any]:
        """What all kernels for decodes take that attend from the qkv projection."""
        return {
            "qkv": qkv,
            "positions": inputs.positions,
            "slots": inputs.slots,
            "cos_sin": self._cos_sin,
            "q_weight": layer.q_norm,
            "k_weight": layer.k_norm,
            "eps": self.spec.norm_eps,
            "num_q_heads": self.spec.num_q_heads,
            "kv_cache": kv_cache,
            "block_table": inputs.block_table,
            "rows": inputs.rows,
            "seq_lens": inputs.seq_lens,
            "scale": self._scale,
        }

    def _plan(self, inputs: ForwardInputs) -> DecodePlan | None:
        """How the step's decodes share their keys among programs; None where there are none."""
        if not inputs.num_decodes:
            return None
        return plan_decode_attention(
            rows=inputs.rows[: inputs.num_decodes],
            seq_lens=inputs.seq_lens[: inputs.num_decodes],
            row_bytes=self.spec.head_size * self.spec.dtype.itemsize,
            num_kv_heads=self.spec.num_kv_heads,
            window=self.spec.window,
            # In a mixed step the keys of all tokens are written before attention.
            includes_new_key=bool(inputs.max_prefill_len),
            num_multiprocessors=self._num_multiprocessors,
            can_stream=self._can_stream,
        )

    def _attention(
        self,
        layer: LayerWeights,
        qkv: torch.Tensor,
        inputs: ForwardInputs,
        kv_cache: torch.Tensor,
        plan: DecodePlan | None,
    ) -> torch.Tensor:
        """[tokens, q heads * head size] from the qkv projection, which is overwritten."""
        spec, decodes = self.spec, inputs.num_decodes
        if not inputs.max_prefill_len:
            assert plan is not None  # a step has tokens
            return decode_attention_from_qkv(
                **self._from_qkv(layer, qkv, inputs, kv_cache), plan=plan, arrivals=inputs.arrivals
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
            keys_in_place=self._has_fresh_prefill,
        )
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if plan is not None:
            paged_decode_attention(
                q=q[:decodes],
                kv_cache=kv_cache,
                block_table=inputs.block_table,
                rows=inputs.rows[:decodes],
                seq_lens=inputs.seq_lens[:decodes],
                scale=self._scale,
                plan=plan,
                arrivals=inputs.arrivals,
                out=out[:decodes],
            )
        fresh = self._has_fresh_prefill and inputs.max_fresh_len >= SHORTEST
        if fresh:
            fresh_prefill_attention(
                qkv=qkv,
                query_start=inputs.query_start[decodes:],
                seq_lens=inputs.seq_lens[decodes:],
                max_query_len=inputs.max_fresh_len,
                num_q_heads=spec.num_q_heads,
                num_kv_heads=spec.num_kv_heads,
                scale=self._scale,
                num_multiprocessors=self._num_multiprocessors,
                out=out,
            )
        if inputs.max_continued_len or not fresh:
            paged_prefill_attention(
                q=q,
                kv_cache=kv_cache,
                block_table=inputs.block_table,
                rows=inputs.rows[decodes:],
                query_start=inputs.query_start[decodes:],
                seq_lens=inputs.seq_lens[decodes:],
                max_query_len=inputs.max_continued_len if fresh else inputs.max_prefill_len,
                scale=self._scale,
                window=spec.window,
                skip_fresh=fresh,
                out=out,
            )
        return out.view(out.shape[0], -1)
