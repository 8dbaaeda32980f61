"""Attention of a row's last token and its drafts, for few rows, where latency is all that counts.

These are entries of the batch that follow one another (see `RequestState.set_draft_batch`), and see the same
keys. A program has a KV head and a share of the keys (see `splits`), and computes all query heads of all
entries with the matrix instruction: keys are read once, and the programs are so few that the output
projection can begin to read its weights beside them. What does not come from the qkv projection is read
before the kernel waits for it, as in `small_batch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.splits import NO_SCORE, split_keys
from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)

MOST_QUERIES = 64
"""Most query heads of all entries of a row that share a KV head."""


@dataclass(frozen=True, slots=True)
class VerifyTiles:
    """How the kernel is run: keys per tile, warps per program, most splits of a row's keys."""

    n: int
    num_warps: int
    num_splits: int


@triton.jit
def _rotated(first, second, cos, sin, first_weight, second_weight, eps, HAS_NORM: tl.constexpr):
    """Normalise and rotate vectors that are given by their halves, [vectors, half]; in fp32."""
    HALF: tl.constexpr = first.shape[1]
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        factor = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        first *= factor * first_weight[None, :]
        second *= factor * second_weight[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _load_tile(
    keys, value_offset, table_row, position, high, stride_kv_block,
    HEAD_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Both halves of the keys at `position` [n] below `high`, and the values."""
    HALF: tl.constexpr = HEAD_SIZE // 2
    seen = position < high
    block = tl.load(table_row + position // BLOCK_SIZE, mask=seen, other=0)
    place = block.to(tl.int64) * stride_kv_block + (position % BLOCK_SIZE) * HEAD_SIZE
    address = (keys + place)[:, None]
    half = tl.arange(0, HALF)[None, :]
    dim = tl.arange(0, HEAD_SIZE)[None, :]
    first = tl.load(address + half, mask=seen[:, None], other=0.0)
    second = tl.load(address + HALF + half, mask=seen[:, None], other=0.0)
    return first, second, tl.load(address + value_offset + dim, mask=seen[:, None], other=0.0)


@triton.jit
def _attend(q_first, q_second, k_first, k_second, v, seen, top, total, attended):
    """Online softmax over one tile: `seen` [queries, keys] says which keys count."""
    scores = tl.dot(q_second, tl.trans(k_second), tl.dot(q_first, tl.trans(k_first)))
    scores = tl.where(seen, scores, NO_SCORE)
    higher = tl.maximum(top, tl.max(scores, axis=1))
    shrink = tl.exp2(top - higher)
    weight = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
    total = total * shrink + tl.sum(weight, axis=1)
    return higher, total, tl.dot(weight.to(v.dtype), v, attended * shrink[:, None])


@triton.jit
def _verify_attention_kernel(
    qkv,
    kv_cache,
    block_table,
    rows,
    seq_lens,
    offsets,
    positions,
    slots,
    cos_sin,
    q_weight,
    k_weight,
    eps,
    out,
    parts,
    parts_lse,
    arrivals,
    scale_log2,
    num_entries,
    stride_qkv,
    stride_kv_block,
    stride_table,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    ENTRIES: tl.constexpr,
    QUERIES: tl.constexpr,
    NEW: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Programs: chunks of `ENTRIES` entries, as many as a row may have; KV heads; splits. A chunk may have
    entries of several rows, one after the other."""
    if DEPENDENT:
        let_next_start()
    HALF: tl.constexpr = HEAD_SIZE // 2
    first = tl.program_id(0) * ENTRIES
    end_of_chunk = tl.minimum(first + ENTRIES, num_entries)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    num_q_heads = num_kv_heads * GROUP
    keys = kv_cache + kv_head * (BLOCK_SIZE * HEAD_SIZE)
    value_offset = num_kv_heads * (BLOCK_SIZE * HEAD_SIZE)
    lane = tl.arange(0, NEW)
    key_lane = tl.arange(0, BLOCK_N)
    query = tl.arange(0, QUERIES)
    half = tl.arange(0, HALF)
    dim = tl.arange(0, HEAD_SIZE)
    q_first_weight = tl.zeros((HALF,), tl.float32)
    q_second_weight = q_first_weight
    k_first_weight = q_first_weight
    k_second_weight = q_first_weight
    if HAS_NORM:
        q_first_weight = tl.load(q_weight + half).to(tl.float32)
        q_second_weight = tl.load(q_weight + HALF + half).to(tl.float32)
        k_first_weight = tl.load(k_weight + half).to(tl.float32)
        k_second_weight = tl.load(k_weight + HALF + half).to(tl.float32)

    while first < end_of_chunk:
        # -- A row's entries here, `count` of them; `before` others come before, in the chunk before.
        row = tl.load(rows + first)
        known_len = tl.load(seq_lens + first)
        before = tl.load(offsets + first)
        following = tl.load(offsets + first + lane, mask=first + lane < end_of_chunk, other=-1)
        count = tl.min(tl.where(following == before + lane, NEW, lane), axis=0)
        count = tl.minimum(count, end_of_chunk - first)
        start, end, tiles_per_split, active = split_keys(row, known_len, before, WINDOW, BLOCK_N, MAX_SPLITS)
        if split < active:
            low = start + split * tiles_per_split * BLOCK_N
            high = tl.minimum(end, low + tiles_per_split * BLOCK_N)
            table_row = block_table + row.to(tl.int64) * stride_table

            # -- Before the wait: all that does not come from the qkv projection.
            position = low + key_lane
            k_first, k_second, v = _load_tile(
                keys, value_offset, table_row, position, high, stride_kv_block, HEAD_SIZE, BLOCK_SIZE
            )
            entry = tl.minimum(query // GROUP, count - 1)
            exists = query < count * GROUP
            rope_position = tl.load(positions + first + entry).to(tl.int64)
            angles = cos_sin + rope_position[:, None] * HEAD_SIZE + half[None, :]
            q_cos = tl.load(angles)
            q_sin = tl.load(angles + HALF)
            # Lane i has the i-th new key.
            newest = before + count - 1
            new = first - before + tl.minimum(lane, newest)
            rope_position = tl.load(positions + first).to(tl.int64) - before + tl.minimum(lane, newest)
            rope_position = tl.where(row >= 0, rope_position, 0)
            angles = cos_sin + rope_position[:, None] * HEAD_SIZE + half[None, :]
            k_cos = tl.load(angles)
            k_sin = tl.load(angles + HALF)
            has_new = (split == active - 1) & (row >= 0)
            writes = has_new & (lane >= before) & (lane <= newest)
            slot = tl.load(slots + new, mask=writes, other=-1)
            writes &= slot >= 0
            if DEPENDENT:
                wait_for_inputs()

            # -- After the wait: all reads of what the qkv projection wrote are issued at once.
            source = qkv + (first + entry).to(tl.int64)[:, None] * stride_qkv + half[None, :]
            source += (kv_head * GROUP + query % GROUP)[:, None] * HEAD_SIZE
            q_first = tl.load(source)
            q_second = tl.load(source + HALF)
            source = qkv + new.to(tl.int64)[:, None] * stride_qkv + (num_q_heads + kv_head) * HEAD_SIZE
            is_new = (has_new & (lane <= newest))[:, None]
            new_first = tl.load(source + half[None, :], mask=is_new, other=0.0)
            new_second = tl.load(source + HALF + half[None, :], mask=is_new, other=0.0)
            v_new = tl.load(source + num_kv_heads * HEAD_SIZE + dim[None, :], mask=is_new, other=0.0)
            q_first, q_second = _rotated(
                q_first, q_second, q_cos, q_sin, q_first_weight, q_second_weight, eps, HAS_NORM
            )
            q_first = (q_first * scale_log2).to(v.dtype)
            q_second = (q_second * scale_log2).to(v.dtype)
            new_first, new_second = _rotated(
                new_first, new_second, k_cos, k_sin, k_first_weight, k_second_weight, eps, HAS_NORM
            )
            new_first = new_first.to(v.dtype)
            new_second = new_second.to(v.dtype)
            place = (slot // BLOCK_SIZE).to(tl.int64) * stride_kv_block + (slot % BLOCK_SIZE) * HEAD_SIZE
            place = (keys + place)[:, None]
            tl.store(place + half[None, :], new_first, mask=writes[:, None])
            tl.store(place + HALF + half[None, :], new_second, mask=writes[:, None])
            tl.store(place + value_offset + dim[None, :], v_new, mask=writes[:, None])

            # -- The cache's keys, tile by tile, and the new ones.
            oldest = tl.zeros((QUERIES,), tl.int32)
            if WINDOW > 0:
                oldest = known_len + entry - WINDOW
            top = tl.full((QUERIES,), NO_SCORE, tl.float32)
            total = tl.zeros((QUERIES,), tl.float32)
            attended = tl.zeros((QUERIES, HEAD_SIZE), tl.float32)
            seen = (position < high)[None, :] & (position[None, :] >= oldest[:, None])
            top, total, attended = _attend(
                q_first, q_second, k_first, k_second, v, seen, top, total, attended
            )
            if has_new:
                fresh = lane[None, :] <= (before + entry)[:, None]
                if WINDOW > 0:
                    fresh &= (known_len - 1 - before + lane)[None, :] >= oldest[:, None]
                top, total, attended = _attend(
                    q_first, q_second, new_first, new_second, v_new, fresh, top, total, attended
                )
            for tile in range(low + BLOCK_N, high, BLOCK_N):
                position = tile + key_lane
                k_first, k_second, v = _load_tile(
                    keys, value_offset, table_row, position, high, stride_kv_block, HEAD_SIZE, BLOCK_SIZE
                )
                seen = (position < high)[None, :] & (position[None, :] >= oldest[:, None])
                top, total, attended = _attend(
                    q_first, q_second, k_first, k_second, v, seen, top, total, attended
                )
            result = attended / tl.where(total > 0, total, 1.0)[:, None]

            # -- The result: the whole, or a part that the last program weighs.
            head = (first + entry).to(tl.int64) * num_q_heads + kv_head * GROUP + query % GROUP
            target = out + head[:, None] * HEAD_SIZE + dim[None, :]
            if active == 1:
                tl.store(target, result.to(out.dtype.element_ty), mask=exists[:, None])
            else:
                lse = tl.where(total > 0, top + tl.log2(total), NO_SCORE)
                part = head * MAX_SPLITS + split
                tl.store(parts_lse + part, lse, mask=exists)
                tl.store(parts + part[:, None] * HEAD_SIZE + dim[None, :], result, mask=exists[:, None])
                # All of the program's writes come before its arrival, the last one's reads after all.
                tl.debug_barrier()
                arrival = arrivals + first * num_kv_heads + kv_head
                if tl.atomic_add(arrival, 1, sem="acq_rel") == active - 1:
                    tl.store(arrival, 0)
                    _weigh_parts(parts, parts_lse, target, head, exists, active, HEAD_SIZE, MAX_SPLITS)
        first += count


@triton.jit
def _weigh_parts(
    parts, parts_lse, target, head, exists, active, HEAD_SIZE: tl.constexpr, MAX_SPLITS: tl.constexpr
):
    """The results of the `active` splits of each head [queries], weighed, to `target` [queries, size]."""
    split = tl.arange(0, MAX_SPLITS)
    dim = tl.arange(0, HEAD_SIZE)
    inside = exists[:, None] & (split < active)[None, :]
    # Other programs wrote them during this launch: they must come from the L2.
    lse = tl.load(
        parts_lse + head[:, None] * MAX_SPLITS + split[None, :],
        mask=inside,
        other=NO_SCORE,
        cache_modifier=".cg",
    )
    top = tl.max(lse, axis=1)
    total = tl.sum(tl.where(inside, tl.exp2(lse - top[:, None]), 0.0), axis=1)
    top += tl.log2(tl.where(total > 0, total, 1.0))
    weighed = tl.zeros((head.shape[0], HEAD_SIZE), tl.float32)
    for i in range(active):
        part = head * MAX_SPLITS + i
        own_lse = tl.load(parts_lse + part, mask=exists, other=NO_SCORE, cache_modifier=".cg")
        source = parts + part[:, None] * HEAD_SIZE + dim[None, :]
        values = tl.load(source, mask=exists[:, None], other=0.0, cache_modifier=".cg")
        weighed += tl.exp2(own_lse - top)[:, None] * values
    tl.store(target, weighed.to(target.dtype.element_ty), mask=exists[:, None])


VERIFY_TILES = VerifyTiles(n=64, num_warps=8, num_splits=16)
"""As measured on an H200 for heads of 128 elements in bfloat16. They depend on no length of a sequence, so
that a captured graph stays valid; a short sequence has fewer splits."""


def most_entries(shape: AttentionShape) -> int:
    """Most entries of one row; 0 where the kernel does not serve such heads: the matrix instruction takes
    vectors of 16 elements or more, and they come by halves."""
    return MOST_QUERIES // shape.group if shape.head_size >= 32 else 0


def verify_attention(
    *,
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    offsets: torch.Tensor,
    max_offset: int,
    arrivals: torch.Tensor | None = None,
    tiles: VerifyTiles = VERIFY_TILES,
) -> torch.Tensor:
    """What `decode.decode_attention_from_qkv` computes, where rows have several entries.

    Args:
        offsets: [batch] int32: how many entries of the same row come right before each, at the positions
            before.
        max_offset: none of them is larger; less than `most_entries`.
        tiles: how to cut the work up.

    The rest are those of `decode_attention_from_qkv`.

    Returns:
        [batch, num_q_heads, head_size].
    """
    batch, head_size, entries = qkv.shape[0], shape.head_size, max_offset + 1
    if entries > most_entries(shape):
        raise ValueError(
            f"max_offset: expected less than {most_entries(shape)} with {shape}, got {max_offset}"
        )
    out = torch.empty((batch, shape.num_q_heads, head_size), dtype=qkv.dtype, device=qkv.device)
    if arrivals is None:
        arrivals = torch.zeros(batch * shape.num_kv_heads, dtype=torch.int32, device=qkv.device)
    splits = (batch, shape.num_q_heads, tiles.num_splits)
    parts = torch.empty((*splits, head_size), dtype=torch.float32, device=qkv.device)
    lse = torch.empty(splits, dtype=torch.float32, device=qkv.device)
    dependent = supports_dependent_launch(qkv.device)
    _verify_attention_kernel[(triton.cdiv(batch, entries), shape.num_kv_heads, tiles.num_splits)](
        qkv=qkv,
        kv_cache=kv_cache,
        block_table=sequences.block_table,
        rows=sequences.rows,
        seq_lens=sequences.seq_lens,
        offsets=offsets,
        positions=tokens.positions,
        slots=tokens.slots,
        cos_sin=tokens.cos_sin,
        q_weight=None if norm is None else norm.q_weight,
        k_weight=None if norm is None else norm.k_weight,
        eps=0.0 if norm is None else norm.eps,
        out=out,
        parts=parts,
        parts_lse=lse,
        arrivals=arrivals,
        scale_log2=shape.scale_log2,
        num_entries=batch,
        stride_qkv=qkv.stride(0),
        stride_kv_block=kv_cache.stride(0),
        stride_table=sequences.block_table.stride(0),
        WINDOW=shape.window or 0,
        GROUP=shape.group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=kv_cache.shape[3],
        HAS_NORM=norm is not None,
        DEPENDENT=dependent,
        MAX_SPLITS=tiles.num_splits,
        ENTRIES=entries,
        QUERIES=max(16, triton.next_power_of_2(entries * shape.group)),
        NEW=max(16, triton.next_power_of_2(entries)),
        BLOCK_N=tiles.n,
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return out
