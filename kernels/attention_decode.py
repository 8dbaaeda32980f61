"""Attention of one query token per sequence over a paged KV cache.

The keys of a sequence are split among programs (one sequence and KV head alone would not fill a GPU), and
each split's result is a partial sum with its log-sum-exp; the split that ends last reduces them. The query
heads that share a KV head form one tile, so that keys and values are read once.

What comes before attention may be part of it: queries and keys straight from the qkv projection are
normalised and rotated here, and the new key and value are written to the cache by the split that they
belong to, which takes them from registers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)

LOG2_E = 1.4426950408889634

FEW_PROGRAMS = 512
"""Under so many sequences times KV heads, each program's own latency counts."""


@triton.jit
def _rotated(
    own, other, weight, weight_other, cos, sin, eps, HAS_NORM: tl.constexpr, HEAD_SIZE: tl.constexpr
):
    """Normalise and rotate vectors of heads, [n, head size], in fp32; `other` and `weight_other` are `own`
    and `weight` with their halves swapped, and the sine has the sign of each half."""
    own = own.to(tl.float32)
    other = other.to(tl.float32)
    if HAS_NORM:
        inverse = tl.rsqrt(tl.sum(own * own, axis=1) / HEAD_SIZE + eps)[:, None]
        own = own * inverse * weight.to(tl.float32)
        other = other * inverse * weight_other.to(tl.float32)
    return own * cos + other * sin


@triton.jit
def _attend(queries, k, v, seen, largest, total, accumulator, scale_log2):
    """Online softmax over one tile of keys, of which at least one is seen, so the new maximum is finite."""
    scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_largest[:, None])
    shrink = tl.exp2(largest - new_largest)
    total = total * shrink + tl.sum(weights, axis=1)
    accumulator = accumulator * shrink[:, None]
    accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
    return new_largest, total, accumulator


@triton.jit
def _reduce_splits(
    partial_out,
    partial_lse,
    out,
    first_head,
    active,
    num_splits,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Weigh the partial results of `GROUP` heads, of which `active` splits exist, into `out`."""
    split = tl.arange(0, MAX_SPLITS)
    dim = tl.arange(0, HEAD_SIZE)
    exists = split < active
    for member in tl.static_range(GROUP):
        head = first_head + member
        entry = head * num_splits + split
        # Other programs wrote them during this launch: they must come from the L2.
        lse = tl.load(partial_lse + entry, mask=exists, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp2(lse - tl.max(lse, axis=0))
        partial = tl.load(
            partial_out + entry[:, None] * HEAD_SIZE + dim[None, :],
            mask=exists[:, None],
            other=0.0,
            cache_modifier=".cg",
        )
        result = tl.sum(partial * weight[:, None], axis=0) / tl.sum(weight, axis=0)
        tl.store(out + head * HEAD_SIZE + dim, result.to(out.dtype.element_ty))


@triton.jit
def _paged_decode_kernel(
    q,
    kv_cache,
    block_table,
    rows,
    seq_lens,
    positions,
    slots,
    cos_sin,
    q_weight,
    k_weight,
    eps,
    out,
    partial_out,
    partial_lse,
    arrivals,
    scale_log2,
    stride_q,
    stride_kv_block,
    stride_table,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FROM_QKV: tl.constexpr,
    HAS_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
    EARLY: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        if not FROM_QKV:
            wait_for_inputs()
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    dim = tl.arange(0, HEAD_SIZE)
    row = tl.load(rows + sequence)
    known_len = tl.load(seq_lens + sequence)
    swapped = (dim + HEAD_SIZE // 2) % HEAD_SIZE
    if FROM_QKV:
        # The step's inputs were there before the step's first product: only `qkv` has to be waited for.
        angles = cos_sin + tl.load(positions + sequence).to(tl.int64) * HEAD_SIZE + dim % (HEAD_SIZE // 2)
        cos = tl.load(angles)[None, :]
        sin = tl.load(angles + HEAD_SIZE // 2)[None, :]
        sin = tl.where(dim[None, :] < HEAD_SIZE // 2, -sin, sin)
        weight = cos
        weight_other = cos
        if HAS_NORM:
            weight = tl.load(q_weight + dim)[None, :]
            weight_other = tl.load(q_weight + swapped)[None, :]
    # A padded entry of the batch has row -1: no keys, and zeros as its result.
    seq_len = tl.where(row < 0, 0, known_len)

    start = 0
    if WINDOW > 0:
        start = tl.maximum(seq_len - WINDOW, 0)
    # Keys to be read from the cache end here.
    end = seq_len
    if FROM_QKV:
        end = tl.maximum(seq_len - 1, 0)
    first_tile = start // BLOCK_N
    tiles = tl.cdiv(end, BLOCK_N) - first_tile
    tiles_per_split = tl.maximum(tl.cdiv(tiles, MAX_SPLITS), MIN_TILES)
    active = tl.maximum(tl.cdiv(tiles, tiles_per_split), 1)
    # A sequence's first split always goes on, so the kernel as a whole waits for its inputs.
    if split >= active:
        return
    low = (first_tile + split * tiles_per_split) * BLOCK_N
    high = tl.minimum(end, low + tiles_per_split * BLOCK_N)
    table_row = block_table + row.to(tl.int64) * stride_table
    keys = kv_cache + kv_head * (BLOCK_SIZE * HEAD_SIZE)
    value_offset = num_kv_heads * (BLOCK_SIZE * HEAD_SIZE)
    offset = tl.arange(0, BLOCK_N)
    # The table is read one tile ahead of the keys, so that the two do not wait for one another.
    block = tl.load(table_row + (low + offset) // BLOCK_SIZE, mask=low + offset < high, other=0)
    if EARLY:
        # Keys of earlier steps are there, too: the first tile comes while the qkv projection still runs.
        position = low + offset
        first_seen = (position >= start) & (position < high)
        address = keys + block.to(tl.int64) * stride_kv_block + (position % BLOCK_SIZE) * HEAD_SIZE
        first_k = tl.load(address[:, None] + dim[None, :], mask=first_seen[:, None], other=0.0)
        first_v = tl.load(address[:, None] + value_offset + dim[None, :], mask=first_seen[:, None], other=0.0)
        ahead = position + BLOCK_N
        block = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < high, other=0)
    if DEPENDENT and FROM_QKV:
        wait_for_inputs()

    member = tl.arange(0, BLOCK_M)
    in_group = member < GROUP
    head = kv_head * GROUP + member
    query_row = q + sequence.to(tl.int64) * stride_q
    queries = tl.load(query_row + head[:, None] * HEAD_SIZE + dim[None, :], mask=in_group[:, None], other=0.0)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, HEAD_SIZE), tl.float32)
    if FROM_QKV:
        dtype = kv_cache.dtype.element_ty
        queries_swapped = tl.load(
            query_row + head[:, None] * HEAD_SIZE + swapped[None, :], mask=in_group[:, None], other=0.0
        )
        queries = _rotated(
            queries, queries_swapped, weight, weight_other, cos, sin, eps, HAS_NORM, HEAD_SIZE
        ).to(dtype)
        if (split == active - 1) & (row >= 0):
            new_key = query_row + (num_kv_heads * GROUP + kv_head) * HEAD_SIZE
            k_own = tl.load(new_key + dim)[None, :]
            k_swapped = tl.load(new_key + swapped)[None, :]
            v_new = tl.load(new_key + num_kv_heads * HEAD_SIZE + dim)[None, :]
            slot = tl.load(slots + sequence)
            if HAS_NORM:
                weight = tl.load(k_weight + dim)[None, :]
                weight_other = tl.load(k_weight + swapped)[None, :]
            k_new = _rotated(k_own, k_swapped, weight, weight_other, cos, sin, eps, HAS_NORM, HEAD_SIZE).to(
                dtype
            )
            if slot >= 0:
                place = keys + (slot // BLOCK_SIZE).to(tl.int64) * stride_kv_block
                place += (slot % BLOCK_SIZE) * HEAD_SIZE
                tl.store(place + dim[None, :], k_new)
                tl.store(place + value_offset + dim[None, :], v_new)
            largest = tl.sum(queries.to(tl.float32) * k_new.to(tl.float32), axis=1) * scale_log2
            total += 1.0
            accumulator += v_new.to(tl.float32)

    next_tile = low
    if EARLY:
        if low < high:
            largest, total, accumulator = _attend(
                queries, first_k, first_v, first_seen, largest, total, accumulator, scale_log2
            )
        next_tile = low + BLOCK_N
    for tile in range(next_tile, high, BLOCK_N):
        position = tile + offset
        seen = (position >= start) & (position < high)
        address = keys + block.to(tl.int64) * stride_kv_block + (position % BLOCK_SIZE) * HEAD_SIZE
        ahead = position + BLOCK_N
        block = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < high, other=0)
        k = tl.load(address[:, None] + dim[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(address[:, None] + value_offset + dim[None, :], mask=seen[:, None], other=0.0)
        largest, total, accumulator = _attend(queries, k, v, seen, largest, total, accumulator, scale_log2)

    result = accumulator / tl.where(total > 0, total, 1.0)[:, None]
    first_head = sequence.to(tl.int64) * (num_kv_heads * GROUP) + kv_head * GROUP
    this_head = first_head + member
    if active == 1:
        tl.store(
            out + this_head[:, None] * HEAD_SIZE + dim[None, :],
            result.to(out.dtype.element_ty),
            mask=in_group[:, None],
        )
    else:
        entry = this_head * MAX_SPLITS + split
        tl.store(partial_lse + entry, largest + tl.log2(total), mask=in_group)
        tl.store(partial_out + entry[:, None] * HEAD_SIZE + dim[None, :], result, mask=in_group[:, None])
        # All of the program's writes come before its arrival, and the last one's reads after all arrivals.
        tl.debug_barrier()
        arrival = arrivals + sequence * num_kv_heads + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel") == active - 1:
            tl.store(arrival, 0)
            _reduce_splits(
                partial_out, partial_lse, out, first_head, active, MAX_SPLITS,
                GROUP, HEAD_SIZE, MAX_SPLITS,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tiles:
    """How the kernel is run: keys per tile, fewest keys per split, warps, pipeline stages."""

    n: int
    min_split: int
    num_warps: int
    num_stages: int


def choose_num_splits(*, batch: int, num_kv_heads: int, num_multiprocessors: int) -> int:
    """The most splits of a sequence's keys, a power of two.

    A few programs for each multiprocessor where sequences are few; and where they are many still 2, which
    evens out sequences of different lengths. It depends on the batch's shape only, never on sequence lengths,
    so that a captured graph stays valid; a short sequence has fewer.
    """
    programs = max(1, batch * num_kv_heads)
    if programs >= 12 * num_multiprocessors:
        return 2
    wanted = max(1, 4 * num_multiprocessors // programs)
    return min(16, max(4, 1 << (wanted.bit_length() - 1)))


def _tile_sizes(programs: int, row_bytes: int) -> _Tiles:
    """As measured on an H200 with keys of 256 bytes, for `programs` sequences times KV heads.

    Many programs hide each other's latency best when each is small; few must be fast themselves.
    """
    if programs >= 3072:
        tiles = _Tiles(n=16, min_split=512, num_warps=1, num_stages=4)
    elif programs >= FEW_PROGRAMS:
        tiles = _Tiles(n=32, min_split=256, num_warps=2, num_stages=3)
    else:
        tiles = _Tiles(n=64, min_split=64 if programs < 64 else 128, num_warps=4, num_stages=2)
    return tiles if row_bytes <= 256 else replace(tiles, n=max(16, tiles.n // 2))


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
    arrivals: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each sequence's last token over its keys, which are all in the cache.

    Args:
        q: [batch, num_q_heads, head_size]; the last two dimensions are contiguous.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], dtype of `q`.
        block_table: [state rows, max blocks], int32: the block ids of each state row.
        rows: [batch], int32: each sequence's state row; -1 for a padded entry, whose result is zeros.
        seq_lens: [batch], int32: keys of each sequence, the query's own among them.
        scale: factor of the scores.
        window: most recent keys that the query sees, its own among them; None for all.
        num_splits: power of two; see `choose_num_splits`.
        arrivals: [batch * num_kv_heads or more], int32, zeros before and after; None for new ones.
        out: [batch, num_q_heads, head_size], contiguous, to write into, or None for a new one.

    Returns:
        `out`.
    """
    num_q_heads = q.shape[1]
    return _launch(
        q, q.stride(0), num_q_heads, kv_cache, block_table, rows, seq_lens, scale, window, num_splits,
        arrivals, out,
    )  # fmt: skip


def decode_attention_from_qkv(
    *,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    num_q_heads: int,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    window: int | None,
    num_splits: int,
    arrivals: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`rotary.qk_norm_rope_kv_write` and `paged_decode_attention` in one launch.

    Args:
        qkv: [batch, (num_q_heads + 2 * num_kv_heads) * head_size], contiguous: one token per sequence; not
            modified.
        positions, slots, cos_sin, q_weight, k_weight, eps: see `rotary.qk_norm_rope_kv_write`.
        num_q_heads: query heads.

    The rest are those of `paged_decode_attention`.

    Returns:
        `out`.
    """
    step = {
        "positions": positions, "slots": slots, "cos_sin": cos_sin, "q_weight": q_weight,
        "k_weight": k_weight, "eps": eps,
    }  # fmt: skip
    return _launch(
        qkv, qkv.stride(0), num_q_heads, kv_cache, block_table, rows, seq_lens, scale, window, num_splits,
        arrivals, out, **step,
    )  # fmt: skip


def _launch(
    q: torch.Tensor,
    stride_q: int,
    num_q_heads: int,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    window: int | None,
    num_splits: int,
    arrivals: torch.Tensor | None,
    out: torch.Tensor | None,
    *,
    positions: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    cos_sin: torch.Tensor | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    batch = q.shape[0]
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    group = num_q_heads // num_kv_heads
    if out is None:
        out = torch.empty((batch, num_q_heads, head_size), dtype=q.dtype, device=q.device)
    if arrivals is None:
        arrivals = torch.zeros(batch * num_kv_heads, dtype=torch.int32, device=q.device)
    partial_out = torch.empty(
        (batch, num_q_heads, num_splits, head_size) if num_splits > 1 else 1,
        dtype=torch.float32,
        device=q.device,
    )
    partial_lse = torch.empty((batch, num_q_heads, num_splits), dtype=torch.float32, device=q.device)
    dependent = supports_dependent_launch(q.device)
    tiles = _tile_sizes(batch * num_kv_heads, head_size * q.element_size())
    _paged_decode_kernel[(batch, num_kv_heads, num_splits)](
        q=q,
        kv_cache=kv_cache,
        block_table=block_table,
        rows=rows,
        seq_lens=seq_lens,
        positions=positions,
        slots=slots,
        cos_sin=cos_sin,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        out=out,
        partial_out=partial_out,
        partial_lse=partial_lse,
        arrivals=arrivals,
        scale_log2=scale * LOG2_E,
        stride_q=stride_q,
        stride_kv_block=kv_cache.stride(0),
        stride_table=block_table.stride(0),
        WINDOW=window or 0,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        FROM_QKV=positions is not None,
        HAS_NORM=q_weight is not None,
        DEPENDENT=dependent,
        EARLY=positions is not None and batch * num_kv_heads < FEW_PROGRAMS,
        MAX_SPLITS=num_splits,
        MIN_TILES=tiles.min_split // tiles.n,
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        BLOCK_N=tiles.n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **launch_options(dependent),
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
