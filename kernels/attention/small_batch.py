"""Attention of one query token per sequence for small batches, where latency is all that counts.

The kernel of `decode` is made for bandwidth. Here a launch takes a microsecond or two, and most of that is
waiting: of a program for memory, and of its warps for one another. So:

- Everything that does not come from the qkv projection is read before the kernel waits for the projection:
  the step's inputs, angles, norm weights, and the first tile of keys and values.
- All tensors have one layout, [lane rows, head size]: a warp holds whole heads. One load in every lane covers
  as many vectors as there are lane rows; a tile of more keys is a tuple of such tensors, `TILE_ROWS` of them.
  Scores are multiply-adds and shuffles within a warp. Each lane row has its own running softmax, and the
  warps exchange their sums once, at the end.
- A sequence's keys are split among programs (see `splits`). The output projection can weigh the splits'
  results (`small_batch_attention_parts`), which saves one more round through the L2 cache and an atomic.

A group is the query heads that share a KV head. The kernel handles them as a tuple of `MEMBERS` tensors,
where `MEMBERS` is the group's size rounded up to a power of two.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.splits import NO_SCORE, AttentionParts, split_keys, split_weights
from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)

LARGEST_GROUP = 8
"""Most query heads per KV head."""
DRAFT_SPLITS = 8
"""Most splits of the keys of an entry of several of one row."""
MAX_SMALL_BATCH = 2
"""Most sequences that this kernel is the fastest for; with more, that of `stream` is."""


def most_context(entries: int, group: int, *, has_drafts: bool) -> int:
    """Tokens of the longest sequence up to which this kernel is the fastest for so many entries (with
    `has_drafts`, those of one row), with `group` query heads per KV head; from there on, that of `stream` is.
    As measured on an H200."""
    if has_drafts:
        return 1024
    if entries == 1:
        return 4608
    return 3584 if group <= 2 else 1280


@dataclass(frozen=True, slots=True)
class SmallBatchTiles:
    """How the kernel is run: keys per tile, warps per program, most splits of a sequence's keys."""

    n: int
    num_warps: int
    num_splits: int
    sharers: int = 1
    """Programs that share the query heads of a KV head, a divisor of their number; at most 4."""
    max_registers: int | None = None
    """Of a thread; None for as many as the compiler wants."""


@triton.jit
def _load_blocks(
    table_row, position, high, BLOCK_SIZE: tl.constexpr, TILE_ROWS: tl.constexpr, LANE_ROWS: tl.constexpr
):
    """Block ids for `_load_tile`."""
    blocks = ()
    for i in tl.static_range(TILE_ROWS):
        at = position + i * LANE_ROWS
        blocks = blocks + (tl.load(table_row + at // BLOCK_SIZE, mask=at < high, other=0),)
    return blocks


@triton.jit
def _load_tile(
    blocks, position, high, keys, value_offset, stride_kv_block,
    HEAD_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_ROWS: tl.constexpr, LANE_ROWS: tl.constexpr,
):  # fmt: skip
    """Keys and values at `position` [lane rows] and every `LANE_ROWS` after it, below `high`: tuples of
    `TILE_ROWS` tensors; `blocks` holds their block ids."""
    dim = tl.arange(0, HEAD_SIZE)[None, :]
    k = ()
    v = ()
    for i in tl.static_range(TILE_ROWS):
        at = position + i * LANE_ROWS
        seen = (at < high)[:, None]
        address = keys + blocks[i].to(tl.int64) * stride_kv_block + (at % BLOCK_SIZE) * HEAD_SIZE
        k = k + (tl.load(address[:, None] + dim, mask=seen, other=0.0),)
        v = v + (tl.load(address[:, None] + value_offset + dim, mask=seen, other=0.0),)
    return k, v


@triton.jit
def _rotated(own, other, cos, sin, eps, HAS_NORM: tl.constexpr, HEAD_SIZE: tl.constexpr):
    """Normalise and rotate a head's vectors, [lane rows, head size], in fp32.

    `other` is `own` with its halves swapped, and the sine has the sign of each half. Cosine and sine include
    the norm's weight, a product computed before the wait. `decode._rotated` multiplies in another order,
    so its results can differ in the last bit.
    """
    own = own.to(tl.float32)
    rotated = own * cos + other.to(tl.float32) * sin
    if HAS_NORM:
        rotated *= tl.rsqrt(tl.sum(own * own, axis=1) / HEAD_SIZE + eps)[:, None]
    return rotated


@triton.jit
def _attend(
    queries, k, v, position, high, largest, total, accumulator,
    MEMBERS: tl.constexpr, TILE_ROWS: tl.constexpr, LANE_ROWS: tl.constexpr,
):  # fmt: skip
    """Online softmax of each lane row over one tile, for every query head of the group.

    Tuples over the group: queries (scaled) and accumulator of [lane rows, head size], largest and total of
    [lane rows]. k, v, position: as in `_load_tile`.
    """
    new_largest = ()
    new_total = ()
    new_accumulator = ()
    for g in tl.static_range(MEMBERS):
        scores = ()
        top = largest[g]
        for i in tl.static_range(TILE_ROWS):
            score = tl.sum(queries[g] * k[i].to(tl.float32), axis=1)
            score = tl.where(position + i * LANE_ROWS < high, score, float("-inf"))
            top = tl.maximum(top, score)
            scores = scores + (score,)
        shrink = tl.exp2(largest[g] - top)
        summed = total[g] * shrink
        attended = accumulator[g] * shrink[:, None]
        for i in tl.static_range(TILE_ROWS):
            weight = tl.exp2(scores[i] - top)
            summed += weight
            attended += weight[:, None] * v[i].to(tl.float32)
        new_largest = new_largest + (top,)
        new_total = new_total + (summed,)
        new_accumulator = new_accumulator + (attended,)
    return new_largest, new_total, new_accumulator


@triton.jit
def _stacked(tensors, MEMBERS: tl.constexpr):
    """A tuple of `MEMBERS` tensors, a power of two, as one with a last dimension of that size, within each
    thread. The dimension is 2 where there is but one, and holds it twice."""
    if MEMBERS == 1:
        stacked = tl.join(tensors[0], tensors[0])
    elif MEMBERS == 2:
        stacked = tl.join(tensors[0], tensors[1])
    else:
        tl.static_assert(MEMBERS == 4 or MEMBERS == 8)
        HALF: tl.constexpr = MEMBERS // 2
        even = ()
        odd = ()
        for i in tl.static_range(HALF):
            even = even + (tensors[2 * i],)
            odd = odd + (tensors[2 * i + 1],)
        if MEMBERS == 4:
            first = tl.join(even[0], even[1])
            second = tl.join(odd[0], odd[1])
        else:
            first = tl.join(tl.join(even[0], even[2]), tl.join(even[1], even[3]))
            second = tl.join(tl.join(odd[0], odd[2]), tl.join(odd[1], odd[3]))
        stacked = tl.join(first, second)
    return stacked


@triton.jit
def _merge_sums(largest, total, other_largest, other_total):
    """Two sums of exponentials, each relative to its largest exponent, as one."""
    top = tl.maximum(largest, other_largest)
    return top, total * tl.exp2(largest - top) + other_total * tl.exp2(other_largest - top)


@triton.jit
def _reduce_parts(
    parts, parts_lse, out, first_head, active,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, HEAD_SIZE: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Weigh the results of a group's `active` splits into `out`.

    There are at most `MAX_SPLITS` parts, so each thread loads all parts of its own elements at once;
    `decode._reduce_parts` goes through any number of parts in a loop.
    """
    element = tl.arange(0, MEMBERS * HEAD_SIZE)
    inside = element < GROUP * HEAD_SIZE
    head = first_head + element // HEAD_SIZE
    lse = ()
    values = ()
    for i in tl.static_range(MAX_SPLITS):
        exists = inside & (i < active)
        # Other programs wrote them during this launch: they must come from the L2.
        loaded = tl.load(parts_lse + head * MAX_SPLITS + i, mask=exists, other=NO_SCORE, cache_modifier=".cg")
        lse = lse + (loaded,)
        source = parts + (head * MAX_SPLITS + i) * HEAD_SIZE + element % HEAD_SIZE
        values = values + (tl.load(source, mask=exists, other=0.0, cache_modifier=".cg"),)
    weight = split_weights(lse, active, MAX_SPLITS)
    result = weight[0] * values[0].to(tl.float32)
    for i in tl.static_range(1, MAX_SPLITS):
        result += weight[i] * values[i].to(tl.float32)
    tl.store(out + first_head * HEAD_SIZE + element, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _small_batch_attention_kernel(
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
    stride_qkv,
    stride_kv_block,
    stride_table,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    LEAVE_PARTS: tl.constexpr,
    SHARERS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MEMBERS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    LANE_ROWS: tl.constexpr,
):
    """`GROUP`: query heads of a program; `SHARERS` programs have those of a KV head."""
    if DEPENDENT:
        let_next_start()
    BLOCK_N: tl.constexpr = TILE_ROWS * LANE_ROWS
    HALF: tl.constexpr = HEAD_SIZE // 2
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1) // SHARERS
    sharer = tl.program_id(1) % SHARERS
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(1) // SHARERS
    num_q_heads = tl.num_programs(1) * GROUP
    first_head = tl.program_id(1) * GROUP

    # -- The split: its keys are at positions [low, high).
    row = tl.load(rows + sequence)
    known_len = tl.load(seq_lens + sequence)
    slot = tl.load(slots + sequence)
    rope_position = tl.load(positions + sequence).to(tl.int64)
    # Entries of the same row before this one, whose keys and values are in the qkv projection, too.
    before = 0
    if HAS_OFFSETS:
        before = tl.load(offsets + sequence)
    start, end, tiles_per_split, active = split_keys(row, known_len, before, WINDOW, BLOCK_N, MAX_SPLITS)
    # A sequence's first split always goes on, so the kernel as a whole waits for its inputs.
    if split >= active:
        return
    low = start + split * tiles_per_split * BLOCK_N
    high = tl.minimum(end, low + tiles_per_split * BLOCK_N)

    # -- Before the wait: all that does not come from the qkv projection.
    dim = tl.arange(0, HEAD_SIZE)[None, :]
    swapped = (dim + HALF) % HEAD_SIZE
    lane_row = tl.arange(0, LANE_ROWS)
    keys = kv_cache + kv_head * (BLOCK_SIZE * HEAD_SIZE)
    value_offset = num_kv_heads * (BLOCK_SIZE * HEAD_SIZE)
    table_row = block_table + row.to(tl.int64) * stride_table
    position = low + lane_row
    blocks = _load_blocks(table_row, position, high, BLOCK_SIZE, TILE_ROWS, LANE_ROWS)
    k, v = _load_tile(
        blocks, position, high, keys, value_offset, stride_kv_block,
        HEAD_SIZE, BLOCK_SIZE, TILE_ROWS, LANE_ROWS,
    )  # fmt: skip
    # Each lane row reads such vectors for itself: to pass a value on from one to the others takes a barrier.
    every_row = tl.zeros((LANE_ROWS, 1), tl.int32)
    angles = cos_sin + rope_position * HEAD_SIZE + every_row
    cos = tl.load(angles + dim % HALF)
    sin = tl.load(angles + HALF + dim % HALF)
    sin = tl.where(dim < HALF, -sin, sin)
    q_cos, q_sin, k_cos, k_sin = cos, sin, cos, sin
    # Lane row i has the i-th new key.
    behind = tl.maximum(before - lane_row, 0)[:, None]
    if HAS_OFFSETS:
        angles += (0 - behind) * HEAD_SIZE
        k_cos = tl.load(angles + dim % HALF)
        k_sin = tl.load(angles + HALF + dim % HALF)
        k_sin = tl.where(dim < HALF, -k_sin, k_sin)
    if HAS_NORM:
        q_cos = q_cos * tl.load(q_weight + every_row + dim).to(tl.float32)
        q_sin = q_sin * tl.load(q_weight + every_row + swapped).to(tl.float32)
        k_cos = k_cos * tl.load(k_weight + every_row + dim).to(tl.float32)
        k_sin = k_sin * tl.load(k_weight + every_row + swapped).to(tl.float32)
    # The table is read one tile ahead of the keys, so that the two do not wait for one another.
    blocks = _load_blocks(table_row, position + BLOCK_N, high, BLOCK_SIZE, TILE_ROWS, LANE_ROWS)
    if DEPENDENT:
        wait_for_inputs()

    # -- After the wait: all reads of what the qkv projection wrote are issued at once.
    token = qkv + sequence.to(tl.int64) * stride_qkv
    own_queries = ()
    other_queries = ()
    for g in tl.static_range(MEMBERS):
        # Where the group's size is no power of two, members beyond it repeat the last one.
        query = token + (first_head + min(g, GROUP - 1)) * HEAD_SIZE + every_row
        own_queries = own_queries + (tl.load(query + dim),)
        other_queries = other_queries + (tl.load(query + swapped),)
    # New keys and values belong to the last split.
    has_new = (split == active - 1) & (row >= 0)
    new_key = token + (num_q_heads + kv_head) * HEAD_SIZE + every_row
    if HAS_OFFSETS:
        new_key += (0 - behind) * stride_qkv
    k_new = tl.load(new_key + dim, mask=has_new, other=0.0)
    k_other = tl.load(new_key + swapped, mask=has_new, other=0.0)
    v_new = tl.load(new_key + num_kv_heads * HEAD_SIZE + dim, mask=has_new, other=0.0)

    # -- The new key and value: to the cache. New ones are the first terms of their lane rows' sums.
    own = (lane_row <= before) & has_new
    if WINDOW > 0:
        own = own & (before - lane_row < WINDOW)
    k_new = _rotated(k_new, k_other, k_cos, k_sin, eps, HAS_NORM, HEAD_SIZE)
    place = keys + (slot // BLOCK_SIZE).to(tl.int64) * stride_kv_block + (slot % BLOCK_SIZE) * HEAD_SIZE
    once = (own & (lane_row == before) & (slot >= 0) & (sharer == 0))[:, None]
    tl.store(place + every_row + dim, k_new.to(kv_cache.dtype.element_ty), mask=once)
    tl.store(place + value_offset + every_row + dim, v_new, mask=once)
    if HAS_OFFSETS:  # those before are what the cache will have
        cached = k_new.to(kv_cache.dtype.element_ty).to(tl.float32)
        k_new = tl.where((lane_row < before)[:, None], cached, k_new)
    queries = ()
    largest = ()
    total = ()
    accumulator = ()
    for g in tl.static_range(MEMBERS):
        query = _rotated(own_queries[g], other_queries[g], q_cos, q_sin, eps, HAS_NORM, HEAD_SIZE)
        query *= scale_log2
        queries = queries + (query,)
        largest = largest + (tl.where(own, tl.sum(query * k_new, axis=1), NO_SCORE),)
        total = total + (tl.where(own, 1.0, 0.0),)
        accumulator = accumulator + (tl.where(own[:, None], v_new.to(tl.float32), 0.0),)

    # -- The keys and values of the cache, tile by tile; the first tile is in registers already.
    largest, total, accumulator = _attend(
        queries, k, v, position, high, largest, total, accumulator, MEMBERS, TILE_ROWS, LANE_ROWS
    )
    for first in range(low + BLOCK_N, high, BLOCK_N):
        position = first + lane_row
        k, v = _load_tile(
            blocks, position, high, keys, value_offset, stride_kv_block,
            HEAD_SIZE, BLOCK_SIZE, TILE_ROWS, LANE_ROWS,
        )  # fmt: skip
        blocks = _load_blocks(table_row, position + BLOCK_N, high, BLOCK_SIZE, TILE_ROWS, LANE_ROWS)
        largest, total, accumulator = _attend(
            queries, k, v, position, high, largest, total, accumulator, MEMBERS, TILE_ROWS, LANE_ROWS
        )

    # -- Lane rows, and so warps, are reduced: once for the sums of all heads, once for their vectors.
    PLACES: tl.constexpr = max(MEMBERS, 2)
    all_largest = tl.reshape(_stacked(largest, MEMBERS), (LANE_ROWS, PLACES))
    all_totals = tl.reshape(_stacked(total, MEMBERS), (LANE_ROWS, PLACES))
    top, totals = tl.reduce((all_largest, all_totals), 0, _merge_sums)
    share = tl.exp2(all_largest - top[None, :]) / tl.where(totals > 0, totals, 1.0)[None, :]
    attended = tl.reshape(_stacked(accumulator, MEMBERS), (LANE_ROWS, HEAD_SIZE, PLACES))
    result = tl.sum(attended * share[:, None, :], axis=0)
    lse = tl.where(totals > 0, top + tl.log2(totals), NO_SCORE)

    # -- The result: as a part for `attended_linear`, as the whole, or as a part that the last program weighs.
    member = tl.arange(0, PLACES)
    in_group = member < GROUP
    first_head += sequence.to(tl.int64) * num_q_heads
    dim = tl.arange(0, HEAD_SIZE)[:, None]
    part = (first_head + member) * MAX_SPLITS + split
    part_target = parts + part[None, :] * HEAD_SIZE + dim
    if LEAVE_PARTS:
        tl.store(parts_lse + part, lse, mask=in_group)
        tl.store(part_target, result.to(parts.dtype.element_ty), mask=in_group[None, :])
    elif active == 1:
        target = out + (first_head + member)[None, :] * HEAD_SIZE + dim
        tl.store(target, result.to(out.dtype.element_ty), mask=in_group[None, :])
    else:
        tl.store(parts_lse + part, lse, mask=in_group)
        tl.store(part_target, result.to(parts.dtype.element_ty), mask=in_group[None, :])
        # All of the program's writes come before its arrival, and the last one's reads after all arrivals.
        tl.debug_barrier()
        arrival = arrivals + sequence * num_kv_heads + kv_head
        one = 1 << (8 * sharer)  # each sharer counts in bits of its own
        if (tl.atomic_add(arrival, one, sem="acq_rel") // one) % 256 == active - 1:
            tl.atomic_add(arrival, -active * one, sem="relaxed")
            _reduce_parts(parts, parts_lse, out, first_head, active, GROUP, MEMBERS, HEAD_SIZE, MAX_SPLITS)


def choose_small_batch_tiles(group: int) -> SmallBatchTiles:
    """Tiles for `group` query heads per KV head. They depend on no length of a sequence, so that a captured
    graph stays valid; a short sequence has fewer splits."""
    if group == 4:
        return SmallBatchTiles(n=64, num_warps=4, num_splits=8, sharers=4)
    return SmallBatchTiles(n=64 if group <= 2 else 32, num_warps=4 if group <= 2 else 8, num_splits=16)


def choose_draft_tiles(group: int, *, entries: int, row_bytes: int) -> SmallBatchTiles:
    """The same where rows have up to `entries` entries of `row_bytes` per key of one head. These are more
    programs: with few warps, few splits and few registers, all of them fit on a GPU at a time, those without
    keys among them, and the next kernel can begin beside them."""
    if group == 4:
        tiles = SmallBatchTiles(n=64, num_warps=4, num_splits=4, sharers=2, max_registers=168)
        if entries <= _lane_rows(tiles, row_bytes):
            return tiles
    tiles = SmallBatchTiles(n=64 if group <= 2 else 32, num_warps=4, num_splits=DRAFT_SPLITS)
    if group > 2 and entries > _lane_rows(tiles, row_bytes):
        return replace(tiles, num_warps=8)
    return tiles


def _lane_rows(tiles: SmallBatchTiles, row_bytes: int) -> int:
    """The rows of a tile that one load of 16 bytes in every lane covers."""
    return min(max(1, 32 * tiles.num_warps * 16 // row_bytes), tiles.n)


def most_entries(group: int, row_bytes: int) -> int:
    """Most entries of one row: a lane row has each new key. `row_bytes`: of a key of one head."""
    return _lane_rows(choose_draft_tiles(group, entries=1 << 20, row_bytes=row_bytes), row_bytes)


def small_batch_attention(
    *,
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    arrivals: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tiles: SmallBatchTiles | None = None,
    offsets: torch.Tensor | None = None,
    max_offset: int = 0,
) -> torch.Tensor:
    """What `decode.decode_attention_from_qkv` computes, for small batches.

    Args:
        shape: with at most `LARGEST_GROUP` query heads per KV head.
        tiles: how to cut the work up; None to choose.
        offsets: [batch] int32: how many entries of the same row come right before each, at the positions
            before. None where each row has one.
        max_offset: none of them is larger; less than `most_entries`.

    The rest are those of `decode_attention_from_qkv`.

    Returns:
        `out`: [batch, num_q_heads, head_size].
    """
    if out is None:
        out = torch.empty(
            (qkv.shape[0], shape.num_q_heads, shape.head_size), dtype=qkv.dtype, device=qkv.device
        )
    if arrivals is None:
        arrivals = torch.zeros(qkv.shape[0] * shape.num_kv_heads, dtype=torch.int32, device=qkv.device)
    _launch(
        qkv=qkv,
        tokens=tokens,
        norm=norm,
        kv_cache=kv_cache,
        sequences=sequences,
        shape=shape,
        arrivals=arrivals,
        out=out,
        tiles=tiles,
        offsets=offsets,
        max_offset=max_offset,
    )
    return out


def small_batch_attention_parts(
    *,
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    tiles: SmallBatchTiles | None = None,
) -> AttentionParts:
    """`small_batch_attention` up to the splits' results, which `attended_linear` weighs."""
    return _launch(
        qkv=qkv,
        tokens=tokens,
        norm=norm,
        kv_cache=kv_cache,
        sequences=sequences,
        shape=shape,
        arrivals=None,
        out=None,
        tiles=tiles,
    )


def _launch(
    *,
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    arrivals: torch.Tensor | None,
    out: torch.Tensor | None,
    tiles: SmallBatchTiles | None,
    offsets: torch.Tensor | None = None,
    max_offset: int = 0,
) -> AttentionParts:
    """Launch the kernel, which weighs the parts into `out` where there is one."""
    batch, head_size, group = qkv.shape[0], shape.head_size, shape.group
    if group > LARGEST_GROUP:
        raise ValueError(f"num_q_heads: expected at most {LARGEST_GROUP} per KV head, got {group}")
    row_bytes = head_size * qkv.element_size()
    if tiles is None and offsets is None:
        tiles = choose_small_batch_tiles(group)
    elif tiles is None:
        tiles = choose_draft_tiles(group, entries=1 + max_offset, row_bytes=row_bytes)
    values = torch.empty(
        (batch, shape.num_q_heads, tiles.num_splits, head_size),
        dtype=qkv.dtype if out is None else torch.float32,
        device=qkv.device,
    )
    lse = torch.empty((batch, shape.num_q_heads, tiles.num_splits), dtype=torch.float32, device=qkv.device)
    lane_rows = _lane_rows(tiles, row_bytes)
    if max_offset >= lane_rows:
        raise ValueError(f"max_offset: expected less than {lane_rows} with {tiles}, got {max_offset}")
    members, beyond = divmod(group, tiles.sharers)
    if beyond:
        raise ValueError(f"tiles: expected sharers that divide {group} query heads, got {tiles.sharers}")
    dependent = supports_dependent_launch(qkv.device)
    options: dict[str, int] = dict(launch_options(dependent))
    if dependent and tiles.max_registers is not None:
        options["maxnreg"] = tiles.max_registers
    _small_batch_attention_kernel[(batch, shape.num_kv_heads * tiles.sharers, tiles.num_splits)](
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
        parts=values,
        parts_lse=lse,
        arrivals=arrivals,
        scale_log2=shape.scale_log2,
        stride_qkv=qkv.stride(0),
        stride_kv_block=kv_cache.stride(0),
        stride_table=sequences.block_table.stride(0),
        WINDOW=shape.window or 0,
        GROUP=members,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=kv_cache.shape[3],
        HAS_NORM=norm is not None,
        HAS_OFFSETS=offsets is not None,
        DEPENDENT=dependent,
        LEAVE_PARTS=out is None,
        SHARERS=tiles.sharers,
        MAX_SPLITS=tiles.num_splits,
        MEMBERS=triton.next_power_of_2(members),
        TILE_ROWS=tiles.n // lane_rows,
        LANE_ROWS=lane_rows,
        num_warps=tiles.num_warps,
        **options,
    )
    return AttentionParts(values, lse, sequences, tiles.n, shape.window or 0)
