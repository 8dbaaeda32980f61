"""Decode attention as one stream of keys and values, for GPUs with asynchronous copies.

The keys of all sequences of a program form one stream of tiles. Tiles are copied to a ring in shared memory,
several tiles before their use. Where a sequence ends, the copies of the next one's keys are under way
already: memory never waits while a program normalises queries, writes a result or begins. A program is one
warp, so nothing in it waits for other warps either; several of them share a multiprocessor.

The new key and value are put into the tile where they belong, once it has arrived, and written to the cache
beside it.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from dodona.kernels.dependent_launch import let_next_start_gluon, wait_for_inputs_gluon
from dodona.kernels.devices import is_hopper

BLOCK_M = gl.constexpr(16)
"""Query heads of a tile: the matrix instruction's. Those beyond a group's are of no use."""
PARTS = gl.constexpr(8)
"""Partial results that are read at once."""
# Its names from Triton 3.7 on, and before.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _span(rows, seq_lens, sequence, tile, count, WINDOW: gl.constexpr, BLOCK_N: gl.constexpr):
    """What `count` tiles of a sequence from `tile` on cover: (state row, first key that is seen, where to
    begin, where to end). A sequence's first tile has no keys: it stands for the work of beginning."""
    row = gl.load(rows + sequence)
    seq_len = gl.where(row < 0, 0, gl.load(seq_lens + sequence))
    start = seq_len * 0
    if WINDOW > 0:
        start = gl.maximum(seq_len - WINDOW, 0)
    low = (start // BLOCK_N + gl.maximum(tile - 1, 0)) * BLOCK_N
    high = gl.minimum(seq_len, (start // BLOCK_N + tile + count - 1) * BLOCK_N)
    return row, start, low, high


@gluon.jit
def _seek(
    at, stop, sequence, kv_head, row, start, first, high, block_table, rows, seq_lens, tile_ends,
    stride_table,
    WINDOW: gl.constexpr, NUM_KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, BLOCK_N: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """The cursor at the next tile that has keys, be it another sequence's; at `stop`, one without keys.

    A cursor: (tiles up to the end of this program's part of the sequence, sequence, KV head, state row, first
    key that is seen, first key of the tile, end of the keys, block ids of the tile's keys).
    """
    while (first >= high) & (at < stop):
        kv_head += 1
        if kv_head == NUM_KV_HEADS:
            kv_head = kv_head * 0
            sequence += 1
        tiles = gl.load(tile_ends + sequence)
        tiles -= gl.load(tile_ends + sequence - 1, mask=sequence > 0, other=0)
        count = gl.minimum(tiles, stop - at)
        row, start, first, high = _span(rows, seq_lens, sequence, 0, count, WINDOW, BLOCK_N)
        at += count
    position = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, LAYOUT))
    table_row = block_table + row.to(gl.int64) * stride_table
    blocks = gl.load(table_row + position // BLOCK_SIZE, mask=position < high, other=0)
    return at, sequence, kv_head, row, start, first, high, blocks


@gluon.jit
def _fetch(
    cursor, stop, k_tile, v_tile, kv_cache, block_table, rows, seq_lens, tile_ends,
    stride_kv_block, stride_table,
    WINDOW: gl.constexpr, NUM_KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Begin to copy the tile at `cursor`, and return the cursor of the next."""
    BLOCK_N: gl.constexpr = k_tile.shape[0]
    HEAD_SIZE: gl.constexpr = k_tile.shape[1]
    at, sequence, kv_head, row, start, first, high, blocks = cursor
    if first < high:
        dim = gl.arange(0, HEAD_SIZE, gl.SliceLayout(0, LAYOUT))
        position = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, LAYOUT))
        seen = (position >= start) & (position < high)
        address = kv_cache + blocks.to(gl.int64) * stride_kv_block
        address += kv_head * (BLOCK_SIZE * HEAD_SIZE) + (position % BLOCK_SIZE) * HEAD_SIZE
        source = address[:, None] + dim[None, :]
        async_copy.async_copy_global_to_shared(k_tile, source, mask=seen[:, None])
        source += NUM_KV_HEADS * (BLOCK_SIZE * HEAD_SIZE)
        async_copy.async_copy_global_to_shared(v_tile, source, mask=seen[:, None])
    async_copy.commit_group()
    return _seek(
        at, stop, sequence, kv_head, row, start, first + BLOCK_N, high, block_table, rows, seq_lens,
        tile_ends, stride_table, WINDOW, NUM_KV_HEADS, BLOCK_SIZE, BLOCK_N, LAYOUT,
    )  # fmt: skip


@gluon.jit
def _rotated(
    vectors, dim, cos, sin, weight, eps, HAS_NORM: gl.constexpr, HEAD_SIZE: gl.constexpr, AXIS: gl.constexpr
):  # fmt: skip
    """Load vectors of a head from `vectors` + `dim`, normalise and rotate them in fp32. The sine has the sign
    of each half."""
    swapped = (dim + HEAD_SIZE // 2) % HEAD_SIZE
    own = gl.load(vectors + dim).to(gl.float32)
    other = gl.load(vectors + swapped).to(gl.float32)
    if HAS_NORM:
        inverse = gl.rsqrt(gl.sum(own * own, AXIS) / HEAD_SIZE + eps)
        if AXIS == 1:
            inverse = inverse[:, None]
        own = own * inverse * gl.load(weight + dim).to(gl.float32)
        other = other * inverse * gl.load(weight + swapped).to(gl.float32)
    return own * cos + other * sin


@gluon.jit
def _attend(
    queries, k_tile, v_tile, first, start, high, largest, total, accumulator, scale_log2,
    MMA: gl.constexpr,
):  # fmt: skip
    """Online softmax over one tile of keys, of which at least one is seen, so the new maximum is finite."""
    BLOCK_N: gl.constexpr = k_tile.shape[0]
    OPERAND: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    k = k_tile.permute((1, 0)).load(OPERAND)
    scores = mma_v2(queries, k, gl.zeros([BLOCK_M, BLOCK_N], gl.float32, MMA))
    position = first + gl.arange(0, BLOCK_N, gl.SliceLayout(0, MMA))
    seen = (position >= start) & (position < high)
    scores = gl.where(seen[None, :], scores * scale_log2, float("-inf"))
    new_largest = gl.maximum(largest, gl.max(scores, 1))
    weights = gl.exp2(scores - new_largest[:, None])
    shrink = gl.exp2(largest - new_largest)
    total = total * shrink + gl.sum(weights, 1)
    weights = gl.convert_layout(weights.to(k_tile.dtype), gl.DotOperandLayout(0, MMA, 2))
    accumulator = mma_v2(weights, v_tile.load(OPERAND), accumulator * shrink[:, None])
    return new_largest, total, accumulator


@gluon.jit
def _reduce_parts(
    partial_out, partial_lse, out, first_program, parts, GROUP: gl.constexpr, HEAD_SIZE: gl.constexpr
):
    """Weigh the partial results of `GROUP` heads by `parts` programs into `out`."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [128 // HEAD_SIZE, HEAD_SIZE // 4], [1, 1], [1, 0])
    dim = gl.arange(0, HEAD_SIZE, gl.SliceLayout(0, LAYOUT))
    for member in gl.static_range(GROUP):
        largest = float("-inf")
        total = 0.0
        result = gl.zeros([HEAD_SIZE], gl.float32, gl.SliceLayout(0, LAYOUT))
        for base in range(0, parts, PARTS):
            part = base + gl.arange(0, PARTS, gl.SliceLayout(1, LAYOUT))
            exists = part < parts
            # A program's second entry is for a sequence that it begins, its first for one it goes on with.
            entry = (2 * (first_program + part) + (part == 0).to(gl.int32)) * GROUP + member
            # Other programs wrote them during this launch: they must come from the L2.
            lse = gl.load(partial_lse + entry, mask=exists, other=float("-inf"), cache_modifier=".cg")
            partial = gl.load(
                partial_out + (entry[:, None] * HEAD_SIZE + dim[None, :]),
                mask=exists[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            new_largest = gl.maximum(largest, gl.max(lse, 0))
            # A part may have seen no key: its sum is 0, its log-sum-exp -inf, and -inf - -inf is no number.
            reference = gl.where(new_largest > float("-inf"), new_largest, 0.0)
            weight = gl.exp2(lse - reference)
            shrink = gl.exp2(largest - reference)
            total = total * shrink + gl.sum(weight, 0)
            result = result * shrink + gl.sum(partial * weight[:, None], 0)
            largest = new_largest
        gl.store(out + member * HEAD_SIZE + dim, (result / total).to(out.dtype.element_ty))


@gluon.jit(do_not_specialize=["batch"])
def stream_decode_kernel(
    q,
    kv_cache,
    block_table,
    rows,
    seq_lens,
    tile_ends,
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
    batch,
    stride_q,
    stride_kv_block,
    stride_table,
    WINDOW: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    MEMBERS: gl.constexpr,
    HEAD_SIZE: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    FROM_QKV: gl.constexpr,
    HAS_NORM: gl.constexpr,
    DEPENDENT: gl.constexpr,
    LEAST_TILES: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    WIDTH: gl.constexpr,
):
    if DEPENDENT:
        let_next_start_gluon()
    PER_ROW: gl.constexpr = HEAD_SIZE // 8
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [32 // PER_ROW, PER_ROW], [1, 1], [1, 0])
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, 1], [16, 8])
    VECTOR: gl.constexpr = gl.SliceLayout(0, COPY)
    dtype: gl.constexpr = kv_cache.dtype.element_ty

    program = gl.program_id(0)
    # The step's inputs and its plan were there before its first product: only `q` has to be waited for.
    entries = gl.arange(0, WIDTH, gl.BlockedLayout([1], [32], [1], [0]))
    ends = gl.load(tile_ends + entries, mask=entries < batch, other=2147483647 // NUM_KV_HEADS) * NUM_KV_HEADS
    total_tiles = gl.load(tile_ends + batch - 1) * NUM_KV_HEADS
    share = gl.maximum(gl.cdiv(total_tiles, gl.num_programs(0)), LEAST_TILES)
    at = program * share
    stop = gl.minimum(at + share, total_tiles)
    # The first program always goes on, so the kernel as a whole waits for its inputs.
    if at < stop:
        sequence = gl.sum((ends <= at).to(gl.int32), 0)
        before = gl.max(gl.where(ends <= at, ends, 0), 0)
        tiles = gl.load(tile_ends + sequence) - before // NUM_KV_HEADS
        kv_head = (at - before) // tiles
        tile = (at - before) % tiles

        k_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_SIZE], SHARED)
        v_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_SIZE], SHARED)
        head_tile = gl.allocate_shared_memory(
            dtype, [BLOCK_M, HEAD_SIZE], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        )
        if DEPENDENT and not FROM_QKV:
            # In a mixed step the newest keys are written just before.
            wait_for_inputs_gluon()
        count = gl.minimum(tiles - tile, stop - at)
        row, start, first, high = _span(rows, seq_lens, sequence, tile, count, WINDOW, BLOCK_N)
        cursor = _seek(
            at + count, stop, sequence, kv_head, row, start, first, high, block_table, rows, seq_lens,
            tile_ends, stride_table, WINDOW, NUM_KV_HEADS, BLOCK_SIZE, BLOCK_N, COPY,
        )  # fmt: skip
        for stage in range(STAGES - 1):
            cursor = _fetch(
                cursor, stop, k_tiles.index(stage), v_tiles.index(stage), kv_cache, block_table, rows,
                seq_lens, tile_ends, stride_kv_block, stride_table, WINDOW, NUM_KV_HEADS, BLOCK_SIZE, COPY,
            )  # fmt: skip
        if DEPENDENT and FROM_QKV:
            wait_for_inputs_gluon()

        dim = gl.arange(0, HEAD_SIZE, VECTOR)
        member = gl.arange(0, MEMBERS, gl.SliceLayout(1, COPY))
        in_group = (member < GROUP)[:, None]
        # The stage to read, and the one before it in the ring, which was read last and is filled next.
        stage = 0
        stage_before = STAGES - 1
        while at < stop:
            count = gl.minimum(tiles - tile, stop - at)
            has_end = tile + count == tiles
            row, start, low, high = _span(rows, seq_lens, sequence, tile, count, WINDOW, BLOCK_N)
            query_row = q + sequence.to(gl.int64) * stride_q
            # Members beyond the group repeat its last one.
            head = kv_head * GROUP + gl.minimum(member, GROUP - 1)
            vectors = query_row + head[:, None] * HEAD_SIZE
            new_key = query_row + (NUM_KV_HEADS * GROUP + kv_head) * HEAD_SIZE
            k_new = gl.zeros([HEAD_SIZE], dtype, VECTOR)
            v_new = k_new
            if FROM_QKV:
                position = gl.load(positions + sequence).to(gl.int64)
                angles = cos_sin + position * HEAD_SIZE + dim % (HEAD_SIZE // 2)
                cos = gl.load(angles)
                sin = gl.load(angles + HEAD_SIZE // 2)
                sin = gl.where(dim < HEAD_SIZE // 2, -sin, sin)
                queries = _rotated(
                    vectors, dim[None, :], cos[None, :], sin[None, :], q_weight, eps, HAS_NORM, HEAD_SIZE, 1
                ).to(dtype)
                if has_end & (row >= 0):
                    k_new = _rotated(new_key, dim, cos, sin, k_weight, eps, HAS_NORM, HEAD_SIZE, 0).to(dtype)
                    v_new = gl.load(new_key + NUM_KV_HEADS * HEAD_SIZE + dim)
                    slot = gl.load(slots + sequence)
                    if slot >= 0:
                        place = kv_cache + (slot // BLOCK_SIZE).to(gl.int64) * stride_kv_block
                        place += kv_head * (BLOCK_SIZE * HEAD_SIZE) + (slot % BLOCK_SIZE) * HEAD_SIZE
                        gl.store(place + dim, k_new)
                        gl.store(place + NUM_KV_HEADS * (BLOCK_SIZE * HEAD_SIZE) + dim, v_new)
            else:
                queries = gl.load(vectors + dim[None, :])
            head_tile.slice(0, MEMBERS).store(queries)
            queries = head_tile.load(gl.DotOperandLayout(0, MMA, 2))
            largest = gl.full([BLOCK_M], float("-inf"), gl.float32, gl.SliceLayout(1, MMA))
            total = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, MMA))
            accumulator = gl.zeros([BLOCK_M, HEAD_SIZE], gl.float32, MMA)

            for first in range(low, high, BLOCK_N):
                cursor = _fetch(
                    cursor, stop, k_tiles.index(stage_before), v_tiles.index(stage_before), kv_cache,
                    block_table, rows, seq_lens, tile_ends, stride_kv_block, stride_table, WINDOW,
                    NUM_KV_HEADS, BLOCK_SIZE, COPY,
                )  # fmt: skip
                async_copy.wait_group(STAGES - 1)
                k_tile = k_tiles.index(stage)
                v_tile = v_tiles.index(stage)
                if FROM_QKV:  # noqa: SIM102 - one of the two is known when the kernel is compiled
                    if has_end & (first + BLOCK_N >= high):
                        own = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, COPY)) == high - 1
                        k_tile.store(gl.where(own[:, None], k_new[None, :], k_tile.load(COPY)))
                        v_tile.store(gl.where(own[:, None], v_new[None, :], v_tile.load(COPY)))
                largest, total, accumulator = _attend(
                    queries, k_tile, v_tile, first, start, high, largest, total, accumulator, scale_log2, MMA
                )
                stage_before = stage
                stage = gl.where(stage == STAGES - 1, 0, stage + 1)

            result = accumulator / gl.where(total > 0, total, 1.0)[:, None]
            pair = sequence.to(gl.int64) * NUM_KV_HEADS + kv_head
            out_group = out + pair * (GROUP * HEAD_SIZE)
            first_program = (at - tile) // share
            parts = (at - tile + tiles - 1) // share - first_program + 1
            if parts == 1:
                head_tile.store(result.to(dtype))
                target = out_group + member[:, None] * HEAD_SIZE + dim[None, :]
                gl.store(target, head_tile.slice(0, MEMBERS).load(COPY), mask=in_group)
            else:
                part_member = gl.arange(0, BLOCK_M, gl.SliceLayout(1, MMA))
                part_dim = gl.arange(0, HEAD_SIZE, gl.SliceLayout(0, MMA))
                entry = (2 * program + (program == first_program).to(gl.int32)) * GROUP + part_member
                lse = largest + gl.log2(gl.where(total > 0, total, 1.0))
                gl.store(partial_lse + entry, lse, mask=part_member < GROUP)
                gl.store(
                    partial_out + (entry[:, None] * HEAD_SIZE + part_dim[None, :]),
                    result,
                    mask=(part_member < GROUP)[:, None],
                )
                # All of a program's writes come before its arrival, and the last one's reads after all
                # arrivals.
                _barrier()
                if gl.atomic_add(arrivals + pair, 1, sem="acq_rel") == parts - 1:
                    gl.store(arrivals + pair, 0)
                    _reduce_parts(partial_out, partial_lse, out_group, first_program, parts, GROUP, HEAD_SIZE)

            at += count
            tile = tile * 0
            kv_head += 1
            if kv_head == NUM_KV_HEADS:
                kv_head = kv_head * 0
                sequence += 1
                if at < stop:
                    tiles = gl.load(tile_ends + sequence) - gl.load(tile_ends + sequence - 1)
        async_copy.wait_group(0)


def supports_streams(*, device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the kernel serves such a model there. It was measured on compute capability 9.0 alone."""
    return is_hopper(device) and dtype in (torch.bfloat16, torch.float16) and head_size in (64, 128)
