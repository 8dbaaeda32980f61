"""Causal attention over a paged KV cache for what the faster kernels leave out: any head sizes, soft-capped
scores, sinks, and chunks of positions.

One launch serves sequences of any number of new tokens, one or many. Keys and values are read from the cache
alone: those of the step were written there before. The query heads that share a KV head are packed into one
tile, beside neighbouring tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import PagedSequences

Kind = Literal["causal", "sliding", "chunked"]

_KINDS = {"causal": 0, "sliding": 1, "chunked": 2}


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How scores are made and which keys are seen."""

    scale: float
    """Factor of the scores."""
    kind: Kind = "causal"
    """A query at position p sees: all keys up to p; the `size` most recent ones; those from the start of its
    chunk of `size` positions."""
    size: int = 0
    softcap: float | None = None
    """Scaled scores s become softcap * tanh(s / softcap); None: they stay."""


@triton.jit
def _any_pattern_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    rows,
    query_start,
    seq_lens,
    sinks,
    out,
    scale,
    softcap,
    size,
    stride_q_token,
    stride_q_head,
    stride_k_block,
    stride_v_block,
    stride_table,
    KIND: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE_K: tl.constexpr,
    SIZE_V: tl.constexpr,
    PADDED_K: tl.constexpr,
    PADDED_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    LOG2_E_: tl.constexpr = 1.4426950408889634
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    sequence = tl.program_id(1)
    kv_head = tl.program_id(2)
    heads = tl.num_programs(2) * GROUP
    first_token = (tl.num_programs(0) - 1 - tl.program_id(0)) * TOKENS
    start = tl.load(query_start + sequence)
    query_len = tl.load(query_start + sequence + 1) - start
    if first_token >= query_len:
        return
    row = tl.load(rows + sequence)
    # A padded entry, row -1, has no keys, and zeros as its result.
    context = tl.where(row < 0, 0, tl.load(seq_lens + sequence) - query_len)

    member = tl.arange(0, BLOCK_M)
    token = first_token + member // GROUP
    head = kv_head * GROUP + member % GROUP
    live = (member < TOKENS * GROUP) & (token < query_len)
    query_position = context + token
    packed = (start + token).to(tl.int64)
    dim_k = tl.arange(0, PADDED_K)
    dim_v = tl.arange(0, PADDED_V)
    queries = tl.load(
        q + packed[:, None] * stride_q_token + head[:, None] * stride_q_head + dim_k[None, :],
        mask=live[:, None] & (dim_k < SIZE_K)[None, :],
        other=0.0,
    )
    first_seen = tl.zeros_like(query_position)
    low = 0
    first_position = context + first_token
    if KIND == 1:
        first_seen = tl.maximum(query_position - size + 1, 0)
        low = tl.maximum(first_position - size + 1, 0) // BLOCK_N * BLOCK_N
    if KIND == 2:
        first_seen = query_position // size * size
        low = first_position // size * size // BLOCK_N * BLOCK_N
    high = tl.where(row < 0, low, tl.minimum(context + query_len, first_position + TOKENS))

    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if HAS_SINKS:
        # A sink is a key without a value.
        largest = tl.load(sinks + head, mask=live, other=0.0).to(tl.float32) * LOG2_E_
        total = tl.full((BLOCK_M,), 1.0, tl.float32)
    accumulator = tl.zeros((BLOCK_M, PADDED_V), tl.float32)
    table_row = block_table + tl.maximum(row, 0).to(tl.int64) * stride_table
    offset = tl.arange(0, BLOCK_N)
    for tile in range(low, high, BLOCK_N):
        position = tile + offset
        exists = position < high
        block = tl.load(table_row + position // BLOCK_SIZE, mask=exists, other=0).to(tl.int64)
        slot = kv_head * BLOCK_SIZE + position % BLOCK_SIZE
        k = tl.load(
            k_cache + (block * stride_k_block + slot * SIZE_K)[:, None] + dim_k[None, :],
            mask=exists[:, None] & (dim_k < SIZE_K)[None, :],
            other=0.0,
        )
        v = tl.load(
            v_cache + (block * stride_v_block + slot * SIZE_V)[:, None] + dim_v[None, :],
            mask=exists[:, None] & (dim_v < SIZE_V)[None, :],
            other=0.0,
        )
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        if HAS_CAP:
            # tanh(x) = 2 sigmoid(2x) - 1
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        seen = (position[None, :] <= query_position[:, None]) & (position[None, :] >= first_seen[:, None])
        scores = tl.where(seen, scores * LOG2_E_, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # A query may see none of the keys so far: its maximum is still -inf, and -inf - -inf is not a number.
        reference = tl.where(new_largest > float("-inf"), new_largest, 0.0)
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(largest - reference)
        total = total * shrink + tl.sum(weights, axis=1)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
        largest = new_largest

    result = accumulator / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + (packed[:, None] * heads + head[:, None]) * SIZE_V + dim_v[None, :],
        result.to(out.dtype.element_ty),
        mask=live[:, None] & (dim_v < SIZE_V)[None, :],
    )


def _tiles(padded: int, element_size: int, wanted_m: int) -> tuple[int, int]:
    """(BLOCK_M, BLOCK_N) that fit 96 KiB of shared memory with two stages."""
    row_bytes = padded * element_size
    if row_bytes > 1024:
        return 16, 16
    if row_bytes > 512:
        return min(32, wanted_m), 16
    return min(64, wanted_m), 32 if row_bytes > 256 else 64


def any_pattern_attention(
    *,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    sequences: PagedSequences,
    query_start: torch.Tensor,
    max_query_len: int,
    rule: ScoreRule,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of packed new tokens over their sequences' keys so far.

    Args:
        q: [tokens, num_q_heads, head_size_k]; the last dimension is contiguous.
        k_cache: [num_blocks, num_kv_heads, block_size, head_size_k], contiguous after the first dimension,
            dtype of `q`; the new tokens' keys are in it.
        v_cache: [num_blocks, num_kv_heads, block_size, head_size_v], likewise.
        sequences: of the batch. The result of a padded entry (row -1) is zeros.
        query_start: [batch + 1], int32: where each sequence's queries start in `q`, and where the last ones
            end.
        max_query_len: most new tokens of a sequence, on the host.
        rule: scale, soft cap, and which keys are seen.
        sinks: [num_q_heads]: one logit per head that takes part in the softmax; None for none.
        out: [tokens, num_q_heads, head_size_v], contiguous, to write into, or None for a new one. Tokens
            outside every sequence are left as they are.

    Returns:
        `out`.
    """
    tokens, num_q_heads, size_k = q.shape
    num_kv_heads, block_size, size_v = k_cache.shape[1], k_cache.shape[2], v_cache.shape[3]
    group = num_q_heads // num_kv_heads
    if out is None:
        out = torch.empty((tokens, num_q_heads, size_v), dtype=q.dtype, device=q.device)
    padded_k, padded_v = (max(16, triton.next_power_of_2(size)) for size in (size_k, size_v))
    wanted_m = max(16, triton.next_power_of_2(max_query_len * group))
    block_m, block_n = _tiles(max(padded_k, padded_v), q.element_size(), wanted_m)
    block_m = max(block_m, triton.next_power_of_2(group))
    grid = (triton.cdiv(max_query_len, block_m // group), sequences.rows.shape[0], num_kv_heads)
    _any_pattern_kernel[grid](
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        block_table=sequences.block_table,
        rows=sequences.rows,
        query_start=query_start,
        seq_lens=sequences.seq_lens,
        sinks=sinks,
        out=out,
        scale=rule.scale,
        softcap=rule.softcap or 0.0,
        size=rule.size,
        stride_q_token=q.stride(0),
        stride_q_head=q.stride(1),
        stride_k_block=k_cache.stride(0),
        stride_v_block=v_cache.stride(0),
        stride_table=sequences.block_table.stride(0),
        KIND=_KINDS[rule.kind],
        HAS_CAP=rule.softcap is not None,
        HAS_SINKS=sinks is not None,
        GROUP=group,
        SIZE_K=size_k,
        SIZE_V=size_v,
        PADDED_K=padded_k,
        PADDED_V=padded_v,
        BLOCK_SIZE=block_size,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=2,
    )
    return out


def any_pattern_attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    sequences: PagedSequences,
    query_start: torch.Tensor,
    rule: ScoreRule,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`any_pattern_attention` in torch, one sequence after the other, in fp32; zeros for tokens outside every
    sequence."""
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = q.shape[1] // num_kv_heads
    out = torch.zeros(*q.shape[:2], v_cache.shape[3], dtype=q.dtype, device=q.device)
    starts = query_start.tolist()
    for i, (row, seq_len) in enumerate(
        zip(sequences.rows.tolist(), sequences.seq_lens.tolist(), strict=True)
    ):
        begin, end = starts[i], starts[i + 1]
        if begin == end or row < 0:
            continue
        blocks = sequences.block_table[row, : -(-seq_len // block_size)].long()
        k, v = (
            cache[blocks].float().transpose(0, 1).flatten(1, 2)[:, :seq_len].repeat_interleave(group, dim=0)
            for cache in (k_cache, v_cache)
        )
        key = torch.arange(seq_len, device=q.device)
        query = torch.arange(seq_len - (end - begin), seq_len, device=q.device)[:, None]
        seen = key <= query
        if rule.kind == "sliding":
            seen &= key > query - rule.size
        if rule.kind == "chunked":
            seen &= key >= query // rule.size * rule.size
        scores = torch.einsum("mhd,hnd->hmn", q[begin:end].float(), k) * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            sink = sinks.float()[:, None, None].expand(-1, end - begin, 1)
            weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
        else:
            weights = scores.softmax(dim=-1)
        out[begin:end] = torch.einsum("hmn,hnd->mhd", weights, v).to(q.dtype)
    return out
