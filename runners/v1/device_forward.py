"""Attention of one forward pass over state on the device, by kernels.

The kernels of `kernels.attention` that V2 uses, too, serve causal and sliding attention of equal head sizes;
`any_pattern` serves the rest. Which one a call gets follows from its shape and arguments alone, so that a
captured graph holds the same launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dodona.kernels.attention.any_pattern import ScoreRule, any_pattern_attention
from dodona.kernels.attention.arguments import AttentionShape, PagedSequences
from dodona.kernels.attention.decode import paged_decode_attention
from dodona.kernels.attention.decode_plan import DecodePlan, plan_decode_attention
from dodona.kernels.attention.fresh import SHORTEST, fresh_prefill_attention, supports_fresh_prefill
from dodona.kernels.attention.kv_write import kv_write
from dodona.kernels.attention.prefill import paged_prefill_attention
from dodona.kernels.attention.stream import supports_streams
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.interface import LayerKVSpec
from dodona.runners.v1.attention import Forward
from dodona.runners.v1.patterns import AttentionPattern

MOST_STREAM_GROUP = 16
"""Most query heads per KV head in the kernel of `stream`."""


def has_equal_heads(spec: LayerKVSpec) -> bool:
    """Whether the kernels for equal head sizes serve the layer."""
    size = spec.head_size_k
    return size == spec.head_size_v and 16 <= size <= 256 and size & (size - 1) == 0


def kv_cache_shape(spec: LayerKVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
    """Shape of a layer's KV cache: [num_blocks, 2, num_kv_heads, block_size, head_size], or one row per block
    where keys and values differ in size, or no kernel needs the dimensions."""
    if has_equal_heads(spec):
        return (num_blocks, 2, spec.num_kv_heads, block_size, spec.head_size_k)
    return (num_blocks, spec.num_kv_heads * block_size * (spec.head_size_k + spec.head_size_v))


def keys_and_values(
    kv_cache: torch.Tensor, spec: LayerKVSpec, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of a layer's KV cache: [num_blocks, num_kv_heads, block_size, head_size] of keys, and of values;
    in a block all keys come before all values."""
    blocks = kv_cache.view(kv_cache.shape[0], -1)
    heads = spec.num_kv_heads
    split = heads * block_size * spec.head_size_k
    return (
        blocks[:, :split].view(-1, heads, block_size, spec.head_size_k),
        blocks[:, split:].view(-1, heads, block_size, spec.head_size_v),
    )


class DeviceForward(Forward):
    """The step's inputs and KV caches, and what the attention calls share.

    Args:
        inputs: the step.
        kv_caches: one per attention call, see `kv_cache_shape`.
        layers: of the calls.
        patterns: of the calls.
        block_size: tokens of a KV block.
        num_multiprocessors: of the device.
    """

    def __init__(
        self,
        inputs: ForwardInputs,
        kv_caches: Sequence[torch.Tensor],
        *,
        layers: Sequence[LayerKVSpec],
        patterns: Sequence[AttentionPattern],
        block_size: int,
        num_multiprocessors: int,
    ) -> None:
        super().__init__(len(layers))
        self._inputs = inputs
        self._kv_caches = kv_caches
        self._layers = layers
        self._patterns = patterns
        self._block_size = block_size
        self._num_multiprocessors = num_multiprocessors
        self._plans: dict[tuple[int | None, int, int], DecodePlan] = {}
        """By window, KV heads and head size."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Forward.attend`."""
        call = self.next_call()
        spec, pattern, kv_cache = self._layers[call], self._patterns[call], self._kv_caches[call]
        query, key, value = (_with_contiguous_heads(x) for x in (query, key, value))
        is_plain = (
            has_equal_heads(spec)
            and pattern.kind != "chunked"
            and softcap is None
            and sinks is None
            and scaling > 0
        )
        shape = AttentionShape(
            num_q_heads=query.shape[1],
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size_k,
            scale=scaling,
            window=pattern.size or None,
        )
        # The plan comes before the write: attention may read a plan before what precedes it has ended.
        plan = self._decode_plan(shape, query) if is_plain and self._inputs.num_decodes else None
        k_cache, v_cache = keys_and_values(kv_cache, spec, self._block_size)
        kv_write(key=key, value=value, slots=self._inputs.slots, k_cache=k_cache, v_cache=v_cache)
        if is_plain:
            return self._plain(query, key, value, kv_cache, shape, plan)
        inputs = self._inputs
        return any_pattern_attention(
            q=query,
            k_cache=k_cache,
            v_cache=v_cache,
            sequences=PagedSequences(inputs.block_table, inputs.rows, inputs.seq_lens),
            query_start=inputs.query_start,
            max_query_len=max(1, inputs.max_prefill_len),
            rule=ScoreRule(scaling, pattern.kind, pattern.size, softcap),
            sinks=sinks,
            out=self._empty_out(query, spec.head_size_v),
        )

    def _plain(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        shape: AttentionShape,
        plan: DecodePlan | None,
    ) -> torch.Tensor:
        """Attention by the kernels for equal head sizes. Decodes come first in the batch."""
        inputs = self._inputs
        count = inputs.num_decodes
        out = self._empty_out(query, shape.head_size)
        if plan is not None:
            paged_decode_attention(
                q=query[:count],
                kv_cache=kv_cache,
                sequences=PagedSequences(inputs.block_table, inputs.rows[:count], inputs.seq_lens[:count]),
                shape=shape,
                plan=plan,
                arrivals=inputs.arrivals,
                out=out[:count],
            )
        if not inputs.max_prefill_len:
            return out
        chunks = PagedSequences(inputs.block_table, inputs.rows[count:], inputs.seq_lens[count:])
        query_start = inputs.query_start[count:]
        fresh = inputs.max_fresh_len >= SHORTEST and supports_fresh_prefill(
            device=query.device, dtype=query.dtype, head_size=shape.head_size, window=shape.window
        )
        if fresh:
            fresh_prefill_attention(
                qkv=torch.cat([query, key, value], dim=1).flatten(1),
                query_start=query_start,
                seq_lens=chunks.seq_lens,
                max_query_len=inputs.max_fresh_len,
                shape=shape,
                num_multiprocessors=self._num_multiprocessors,
                out=out,
            )
        longest = inputs.max_continued_len if fresh else inputs.max_prefill_len
        if longest:
            paged_prefill_attention(
                q=query,
                kv_cache=kv_cache,
                sequences=chunks,
                query_start=query_start,
                max_query_len=longest,
                shape=shape,
                skip_fresh=fresh,
                out=out,
            )
        return out

    def _empty_out(self, query: torch.Tensor, head_size: int) -> torch.Tensor:
        """[tokens, heads, head_size]; zeros where padding follows a prompt, which no kernel writes."""
        make = torch.zeros if self._inputs.may_be_padded_prompt else torch.empty
        return make((*query.shape[:2], head_size), dtype=query.dtype, device=query.device)

    def _decode_plan(self, shape: AttentionShape, query: torch.Tensor) -> DecodePlan:
        """The plan of the step's decodes, made once for all calls of the same shape."""
        name = (shape.window, shape.num_kv_heads, shape.head_size)
        if name not in self._plans:
            inputs, count = self._inputs, self._inputs.num_decodes
            self._plans[name] = plan_decode_attention(
                sequences=PagedSequences(inputs.block_table, inputs.rows[:count], inputs.seq_lens[:count]),
                shape=shape,
                row_bytes=shape.head_size * query.element_size(),
                includes_new_key=True,
                num_multiprocessors=self._num_multiprocessors,
                can_stream=shape.group <= MOST_STREAM_GROUP
                and supports_streams(device=query.device, dtype=query.dtype, head_size=shape.head_size),
            )
        return self._plans[name]


def _with_contiguous_heads(x: torch.Tensor) -> torch.Tensor:
    """The same [tokens, heads, head_size] with heads that lie one after the other, as the kernels read it."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
