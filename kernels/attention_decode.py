"""Attention of one query token per sequence over a paged KV cache.

The keys of a sequence are split among programs (one sequence and KV head alone would not fill a GPU), and
each split's result is a partial sum with its log-sum-exp; a second kernel reduces them. The query heads that
share a KV head form one tile, so that keys and values are read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def _paged_decode_kernel(
    q,
    kv_cache,
    block_table,
    rows,
    seq_lens,
    out,
    partial_out,
    partial_lse,
    scale_log2,
    stride_q,
    stride_kv_block,
    stride_table,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    num_splits = tl.num_programs(2)
    row = tl.load(rows + sequence)
    # A padded entry of the batch has row -1: no keys, and zeros as its result.
    seq_len = tl.where(row < 0, 0, tl.load(seq_lens + sequence))

    start = 0
    if WINDOW > 0:
        start = tl.maximum(seq_len - WINDOW, 0)
    first_tile = start // BLOCK_N
    tiles = tl.cdiv(seq_len, BLOCK_N) - first_tile
    tiles_per_split = tl.maximum(tl.cdiv(tiles, num_splits), MIN_TILES)
    low = (first_tile + split * tiles_per_split) * BLOCK_N
    high = tl.minimum(seq_len, low + tiles_per_split * BLOCK_N)

    member = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, HEAD_SIZE)
    in_group = member < GROUP
    head = kv_head * GROUP + member
    queries = tl.load(
        q + sequence.to(tl.int64) * stride_q + head[:, None] * HEAD_SIZE + dim[None, :],
        mask=in_group[:, None],
        other=0.0,
    )

    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, HEAD_SIZE), tl.float32)
    table_row = block_table + row.to(tl.int64) * stride_table
    keys = kv_cache + kv_head * (BLOCK_SIZE * HEAD_SIZE)
    value_offset = num_kv_heads * (BLOCK_SIZE * HEAD_SIZE)
    for tile in range(low, high, BLOCK_N):
        position = tile + tl.arange(0, BLOCK_N)
        seen = (position >= start) & (position < high)
        block = tl.load(table_row + position // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
        address = keys + block * stride_kv_block + (position % BLOCK_SIZE) * HEAD_SIZE
        k = tl.load(address[:, None] + dim[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(address[:, None] + value_offset + dim[None, :], mask=seen[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # Every tile holds a key that is seen, so the new maximum is finite.
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weights, axis=1)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
        largest = new_largest

    result = accumulator / tl.where(total > 0, total, 1.0)[:, None]
    heads = num_kv_heads * GROUP
    if SPLIT:
        entry = (sequence.to(tl.int64) * heads + head) * num_splits + split
        lse = tl.where(total > 0, largest + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
        tl.store(partial_lse + entry, lse, mask=in_group)
        if low < high:
            tl.store(partial_out + entry[:, None] * HEAD_SIZE + dim[None, :], result, mask=in_group[:, None])
    else:
        tl.store(
            out + (sequence.to(tl.int64) * heads + head[:, None]) * HEAD_SIZE + dim[None, :],
            result.to(out.dtype.element_ty),
            mask=in_group[:, None],
        )


@triton.jit
def _reduce_splits_kernel(
    partial_out,
    partial_lse,
    out,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    entry = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, HEAD_SIZE)
    lse = tl.load(partial_lse + entry * num_splits + split, mask=split < num_splits, other=float("-inf"))
    largest = tl.max(lse, axis=0)
    nonempty = lse > float("-inf")
    weight = tl.where(nonempty, tl.exp2(lse - tl.where(largest > float("-inf"), largest, 0.0)), 0.0)
    # A split without keys wrote no partial result: its memory may hold anything.
    partial = tl.load(
        partial_out + (entry * num_splits + split[:, None]) * HEAD_SIZE + dim[None, :],
        mask=nonempty[:, None],
        other=0.0,
    )
    total = tl.sum(weight, axis=0)
    result = tl.sum(partial * weight[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out + entry * HEAD_SIZE + dim, result.to(out.dtype.element_ty))


def choose_num_splits(*, batch: int, num_kv_heads: int, num_multiprocessors: int) -> int:
    """Splits of a sequence's keys: a power of two that gives each multiprocessor a few programs, at most 64.

    It depends on the batch's shape only, never on sequence lengths, so that a captured graph stays valid;
    short sequences leave splits empty.
    """
    programs = max(1, batch * num_kv_heads)
    wanted = max(1, 4 * num_multiprocessors // programs)
    return min(64, 1 << (wanted.bit_length() - 1))


def paged_decode_attention(
    *,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    window: int | None,
    num_splits: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each sequence's last token over its keys.

    Args:
        q: [batch, num_q_heads, head_size]; the last two dimensions are contiguous.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], dtype of `q`.
        block_table: [state rows, max blocks], int32: the block ids of each state row.
        rows: [batch], int32: each sequence's state row; -1 for a padded entry, whose result is zeros.
        seq_lens: [batch], int32: keys of each sequence, the query's own among them.
        scale: factor of the scores.
        window: most recent keys that the query sees, its own among them; None for all.
        num_splits: power of two; see `choose_num_splits`.
        out: [batch, num_q_heads, head_size], contiguous, to write into, or None for a new one.

    Returns:
        `out`.
    """
    batch, num_q_heads, head_size = q.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    group = num_q_heads // num_kv_heads
    if out is None:
        out = torch.empty((batch, num_q_heads, head_size), dtype=q.dtype, device=q.device)
    split = num_splits > 1
    partial_out, partial_lse = out, out
    if split:
        partial_out = torch.empty(
            (batch, num_q_heads, num_splits, head_size), dtype=torch.float32, device=q.device
        )
        partial_lse = torch.empty((batch, num_q_heads, num_splits), dtype=torch.float32, device=q.device)
    block_n = 64 if head_size * q.element_size() <= 256 else 32
    _paged_decode_kernel[(batch, num_kv_heads, num_splits)](
        q=q,
        kv_cache=kv_cache,
        block_table=block_table,
        rows=rows,
        seq_lens=seq_lens,
        out=out,
        partial_out=partial_out,
        partial_lse=partial_lse,
        scale_log2=scale * LOG2_E,
        stride_q=q.stride(0),
        stride_kv_block=kv_cache.stride(0),
        stride_table=block_table.stride(0),
        WINDOW=window or 0,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        SPLIT=split,
        MIN_TILES=max(1, 64 // block_n),
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=3,
    )
    if split:
        _reduce_splits_kernel[(batch, num_q_heads)](
            partial_out=partial_out,
            partial_lse=partial_lse,
            out=out,
            num_splits=num_splits,
            HEAD_SIZE=head_size,
            SPLITS=num_splits,
            num_warps=2 if num_splits <= 16 else 4,
        )
    return out


def paged_decode_attention_reference(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """`paged_decode_attention` in torch, one sequence after the other, in fp32."""
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    group = q.shape[1] // num_kv_heads
    out = torch.zeros_like(q)
    for i, (row, seq_len) in enumerate(zip(rows.tolist(), seq_lens.tolist(), strict=True)):
        if row < 0:
            continue
        blocks = block_table[row, : -(-seq_len // block_size)].long()
        kv = kv_cache[blocks].float().permute(1, 2, 0, 3, 4).reshape(2, num_kv_heads, -1, head_size)
        first = max(0, seq_len - window) if window else 0
        k, v = kv[:, :, first:seq_len].repeat_interleave(group, dim=1)
        probabilities = torch.softmax(torch.einsum("hd,hnd->hn", q[i].float(), k) * scale, dim=-1)
        out[i] = torch.einsum("hn,hnd->hd", probabilities, v).to(q.dtype)
    return out
