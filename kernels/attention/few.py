"""Attention of one query token per sequence where sequences are so few that only latency counts.

`attention_decode` is made for bandwidth; here a launch's work is a microsecond or two, and what counts is how
often a program waits for memory or for its other warps. So:

- all that does not come from the qkv projection is read before the wait for it: the step's inputs, angles,
  norm weights, and as many keys and values as one tile holds;
- every tensor has one layout, in which a head's vector lies within a warp: [lane rows, head size], where lane
  rows are as many vectors as one load in every lane covers, and longer tiles are tuples of such tensors.
  Scores are multiply-adds and shuffles; each lane row has its own running softmax, and the warps meet once,
  at the end;
- the splits' results can be left to the output projection, which reads the attended vector anyway
  (`attended_linear`), instead of one more round through the L2 cache and an atomic.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.decode import LOG2_E
from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)

LARGEST_GROUP = 8
"""Most query heads per KV head."""
MOST_FEW_SEQUENCES = 2
"""Up to how many sequences it is worth while: more of them, `attention_stream` shares out evenly."""
NO_SCORE = tl.constexpr(-1e30)
"""Below every score, and finite, so that differences of it are numbers."""


@dataclass(frozen=True, slots=True)
class FewTiles:
    """How the kernel is run: keys per tile, warps per program, most splits of a sequence's keys."""

    n: int
    num_warps: int
    num_splits: int


@dataclass(frozen=True, slots=True, eq=False)
class AttentionParts:
    """Results of the splits of one sequence's keys, to be weighed by whoever reads them."""

    values: torch.Tensor
    """[batch, num_q_heads, num_splits, head_size]: each split's attention over its own keys."""
    lse: torch.Tensor
    """[batch, num_q_heads, num_splits], float32: base-2 logarithm of each split's sum of exponentials."""
    rows: torch.Tensor
    """[batch], int32: what attention was given; with the next two it says how many splits there are."""
    seq_lens: torch.Tensor
    """[batch], int32."""
    tile: int
    """Keys per tile."""
    window: int
    """Most recent keys that are seen, or 0 for all."""


@triton.jit
def split_keys(row, known_len, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """How a sequence's keys in the cache are split, the new one not among them: (first key, end, tiles per
    split, splits). A padded entry of the batch, row -1, has one split without keys."""
    seq_len = tl.where(row < 0, 0, known_len)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(seq_len - WINDOW, 0)
    end = tl.maximum(seq_len - 1, 0)
    tiles = tl.cdiv(end - start, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(tiles, MAX_SPLITS), 1)
    return start, end, tiles_per_split, tl.maximum(tl.cdiv(tiles, tiles_per_split), 1)


@triton.jit
def _rotated(own, other, cos, sin, eps, HAS_NORM: tl.constexpr, HEAD_SIZE: tl.constexpr):
    """Normalise and rotate a head's vectors, [lane rows, head size], in fp32; `other` is `own` with its
    halves swapped, the sine has the sign of each half, and a norm's weight is in cosine and sine."""
    own = own.to(tl.float32)
    rotated = own * cos + other.to(tl.float32) * sin
    if HAS_NORM:
        rotated *= tl.rsqrt(tl.sum(own * own, axis=1) / HEAD_SIZE + eps)[:, None]
    return rotated


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
def _few_kernel(
    qkv,
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
    DEPENDENT: tl.constexpr,
    LEAVE_PARTS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MEMBERS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    LANE_ROWS: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    BLOCK_N: tl.constexpr = TILE_ROWS * LANE_ROWS
    HALF: tl.constexpr = HEAD_SIZE // 2
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    row = tl.load(rows + sequence)
    known_len = tl.load(seq_lens + sequence)
    slot = tl.load(slots + sequence)
    rope_position = tl.load(positions + sequence).to(tl.int64)
    start, end, tiles_per_split, active = split_keys(row, known_len, WINDOW, BLOCK_N, MAX_SPLITS)
    # A sequence's first split always goes on, so the kernel as a whole waits for its inputs.
    if split >= active:
        return
    low = start + split * tiles_per_split * BLOCK_N
    high = tl.minimum(end, low + tiles_per_split * BLOCK_N)

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
    # Every lane row reads such vectors for itself: a value that one had to pass on would cost a barrier.
    every_row = tl.zeros((LANE_ROWS, 1), tl.int32)
    angles = cos_sin + rope_position * HEAD_SIZE + every_row
    cos = tl.load(angles + dim % HALF)
    sin = tl.load(angles + HALF + dim % HALF)
    sin = tl.where(dim < HALF, -sin, sin)
    q_cos, q_sin, k_cos, k_sin = cos, sin, cos, sin
    if HAS_NORM:
        q_cos = cos * tl.load(q_weight + every_row + dim).to(tl.float32)
        q_sin = sin * tl.load(q_weight + every_row + swapped).to(tl.float32)
        k_cos = cos * tl.load(k_weight + every_row + dim).to(tl.float32)
        k_sin = sin * tl.load(k_weight + every_row + swapped).to(tl.float32)
    # The table is read one tile ahead of the keys, so that the two do not wait for one another.
    blocks = _load_blocks(table_row, position + BLOCK_N, high, BLOCK_SIZE, TILE_ROWS, LANE_ROWS)
    if DEPENDENT:
        wait_for_inputs()

    # All that the qkv projection wrote is asked for at once.
    token = qkv + sequence.to(tl.int64) * stride_qkv
    own_queries = ()
    other_queries = ()
    for g in tl.static_range(MEMBERS):
        # A group's size need not be a power of two: members beyond it repeat the last one.
        query = token + (kv_head * GROUP + min(g, GROUP - 1)) * HEAD_SIZE + every_row
        own_queries = own_queries + (tl.load(query + dim),)
        other_queries = other_queries + (tl.load(query + swapped),)
    # The new key and value belong to the last split.
    has_new = (split == active - 1) & (row >= 0)
    new_key = token + (num_kv_heads * GROUP + kv_head) * HEAD_SIZE + every_row
    k_new = tl.load(new_key + dim, mask=has_new, other=0.0)
    k_other = tl.load(new_key + swapped, mask=has_new, other=0.0)
    v_new = tl.load(new_key + num_kv_heads * HEAD_SIZE + dim, mask=has_new, other=0.0)

    own = (lane_row == 0) & has_new
    k_new = _rotated(k_new, k_other, k_cos, k_sin, eps, HAS_NORM, HEAD_SIZE)
    place = keys + (slot // BLOCK_SIZE).to(tl.int64) * stride_kv_block + (slot % BLOCK_SIZE) * HEAD_SIZE
    once = (own & (slot >= 0))[:, None]
    tl.store(place + every_row + dim, k_new.to(kv_cache.dtype.element_ty), mask=once)
    tl.store(place + value_offset + every_row + dim, v_new, mask=once)
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

    # The lane rows, and with them the warps, meet: once for the sums of all heads, once for their vectors.
    PLACES: tl.constexpr = max(MEMBERS, 2)
    all_largest = tl.reshape(_stacked(largest, MEMBERS), (LANE_ROWS, PLACES))
    all_totals = tl.reshape(_stacked(total, MEMBERS), (LANE_ROWS, PLACES))
    top, totals = tl.reduce((all_largest, all_totals), 0, _merge_sums)
    share = tl.exp2(all_largest - top[None, :]) / tl.where(totals > 0, totals, 1.0)[None, :]
    attended = tl.reshape(_stacked(accumulator, MEMBERS), (LANE_ROWS, HEAD_SIZE, PLACES))
    result = tl.sum(attended * share[:, None, :], axis=0)
    lse = tl.where(totals > 0, top + tl.log2(totals), NO_SCORE)

    member = tl.arange(0, PLACES)
    in_group = member < GROUP
    first_head = (sequence * num_kv_heads + kv_head).to(tl.int64) * GROUP
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
        if tl.atomic_add(arrival, 1, sem="acq_rel") == active - 1:
            tl.store(arrival, 0)
            _reduce_parts(parts, parts_lse, out, first_head, active, GROUP, MEMBERS, HEAD_SIZE, MAX_SPLITS)


@triton.jit
def _reduce_parts(
    parts, parts_lse, out, first_head, active,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, HEAD_SIZE: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Weigh the results of a group's `active` splits into `out`: every thread reads what its own elements
    take."""
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
def split_weights(lse, active, MAX_SPLITS: tl.constexpr):
    """The weight of each split's result from a tuple of their log-sum-exps; 0 from `active` on."""
    top = lse[0]
    for i in tl.static_range(1, MAX_SPLITS):
        top = tl.maximum(top, lse[i])
    weights = ()
    total = tl.zeros_like(top)
    for i in tl.static_range(MAX_SPLITS):
        weight = tl.where(i < active, tl.exp2(lse[i] - top), 0.0)
        total += weight
        weights = weights + (weight,)
    scaled = ()
    for i in tl.static_range(MAX_SPLITS):
        scaled = scaled + (weights[i] / total,)
    return scaled


def choose_few_tiles(group: int) -> FewTiles:
    """Tiles for `group` query heads per KV head. They depend on no length of a sequence, so that a captured
    graph stays valid; a short sequence has fewer splits."""
    return FewTiles(n=64 if group <= 2 else 32, num_warps=4 if group <= 2 else 8, num_splits=16)


def few_sequences_attention(
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
    arrivals: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tiles: FewTiles | None = None,
) -> torch.Tensor:
    """What `attention_decode.decode_attention_from_qkv` computes, for few sequences.

    Args:
        tiles: how to cut the work up; None to choose.

    The rest are those of `decode_attention_from_qkv`.

    Returns:
        `out`: [batch, num_q_heads, head_size].
    """
    if out is None:
        out = torch.empty((qkv.shape[0], num_q_heads, kv_cache.shape[4]), dtype=qkv.dtype, device=qkv.device)
    _launch(
        qkv, positions, slots, cos_sin, q_weight, k_weight, eps, num_q_heads, kv_cache, block_table, rows,
        seq_lens, scale, window, arrivals, out, tiles,
    )  # fmt: skip
    return out


def few_sequences_attention_parts(
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
    tiles: FewTiles | None = None,
) -> AttentionParts:
    """`few_sequences_attention` whose splits are left to be weighed: `attended_linear` does so."""
    return _launch(
        qkv, positions, slots, cos_sin, q_weight, k_weight, eps, num_q_heads, kv_cache, block_table, rows,
        seq_lens, scale, window, None, None, tiles,
    )  # fmt: skip


def _launch(
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
    arrivals: torch.Tensor | None,
    out: torch.Tensor | None,
    tiles: FewTiles | None,
) -> AttentionParts:
    batch = qkv.shape[0]
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    group = num_q_heads // num_kv_heads
    if group > LARGEST_GROUP:
        raise ValueError(f"num_q_heads: expected at most {LARGEST_GROUP} per KV head, got {group}")
    if tiles is None:
        tiles = choose_few_tiles(group)
    if out is not None and arrivals is None:
        arrivals = torch.zeros(batch * num_kv_heads, dtype=torch.int32, device=qkv.device)
    values = torch.empty(
        (batch, num_q_heads, tiles.num_splits, head_size),
        dtype=qkv.dtype if out is None else torch.float32,
        device=qkv.device,
    )
    lse = torch.empty((batch, num_q_heads, tiles.num_splits), dtype=torch.float32, device=qkv.device)
    # The rows of a tile that one load of 16 bytes in every lane covers.
    lane_rows = max(1, 32 * tiles.num_warps * 16 // (head_size * qkv.element_size()))
    lane_rows = min(lane_rows, tiles.n)
    dependent = supports_dependent_launch(qkv.device)
    _few_kernel[(batch, num_kv_heads, tiles.num_splits)](
        qkv=qkv,
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
        parts=values,
        parts_lse=lse,
        arrivals=arrivals,
        scale_log2=scale * LOG2_E,
        stride_qkv=qkv.stride(0),
        stride_kv_block=kv_cache.stride(0),
        stride_table=block_table.stride(0),
        WINDOW=window or 0,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        HAS_NORM=q_weight is not None,
        DEPENDENT=dependent,
        LEAVE_PARTS=out is None,
        MAX_SPLITS=tiles.num_splits,
        MEMBERS=triton.next_power_of_2(group),
        TILE_ROWS=tiles.n // lane_rows,
        LANE_ROWS=lane_rows,
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return AttentionParts(values, lse, rows, seq_lens, tiles.n, window or 0)
