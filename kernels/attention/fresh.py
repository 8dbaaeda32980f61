"""Causal attention of packed prompts over themselves, for Hopper's tensor cores.

A sequence is fresh where it has no context: its queries are all of its tokens so far. Its keys and values
then stand beside its queries in the qkv projection, in the order of tokens, so that the tensor memory
accelerator (TMA) copies whole tiles to shared memory, where the matrix products read them.

A tile of `BLOCK_M` queries of one head is shared by two warp groups, and one more warp copies tiles for both.
A group issues the scores of one key tile before the product of the weights and values of the tile before it:
the exponentials are computed while the tensor cores work. Weights stay in registers.
"""

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from dodona.kernels.attention.arguments import AttentionShape
from dodona.kernels.devices import is_hopper

BLOCK_M = 128
"""Queries of a program."""
BLOCK_N = 128
"""Keys of a tile. As many as queries: then the diagonal crosses the last tile only, from corner to corner."""
SHORTEST = 128
"""Tokens of the longest sequence from which on it is worth while: tiles of shorter ones are mostly empty, and
the paged kernel fills its own with heads."""


@gluon.jit
def _softmax(scores, largest, total, scale_log2):
    """One step of online softmax: (weights, largest score, sum of weights, factor of what was before)."""
    new_largest = gl.maximum(largest, gl.max(scores, 1))
    reference = new_largest * scale_log2
    weights = gl.exp2(scores * scale_log2 - reference[:, None])
    shrink = gl.exp2(largest * scale_log2 - reference)
    return weights, new_largest, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _first_softmax(scores, scale_log2, first_row: gl.constexpr, LAYOUT: gl.constexpr):
    """Softmax of the diagonal's tile, whose queries begin `first_row` tokens after its keys: (weights,
    largest score, sum of weights)."""
    row = first_row + gl.arange(0, scores.shape[0], gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, scores.shape[1], gl.SliceLayout(0, LAYOUT))
    scores = gl.where(column[None, :] <= row[:, None], scores, float("-inf"))
    # Each query sees itself: the maximum is a number.
    largest = gl.max(scores, 1)
    weights = gl.exp2(scores * scale_log2 - (largest * scale_log2)[:, None])
    return weights, largest, gl.sum(weights, 1)


@gluon.jit
def _store(result, tile, out, token, live, stride_out):
    """Write the first `live` rows of `result` to `out`, from `token` on; through `tile` in shared memory, so
    that lines are whole."""
    HEAD_SIZE: gl.constexpr = tile.shape[1]
    ROWS: gl.constexpr = tile.shape[0]
    PER_ROW: gl.constexpr = HEAD_SIZE // 8
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // PER_ROW, PER_ROW], [gl.num_warps(), 1], [1, 0])
    tile.store(result.to(tile.dtype))
    row = gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, HEAD_SIZE, gl.SliceLayout(0, LAYOUT))
    target = out + token.to(gl.int64) * stride_out
    gl.store(
        target + row[:, None] * stride_out + dim[None, :],
        tile.load(LAYOUT),
        mask=(row < live)[:, None],
    )


@gluon.jit
def _find_work(
    turn, query_start, seq_lens, num_sequences, max_tiles, NUM_Q_HEADS: gl.constexpr, BLOCK: gl.constexpr
):
    """What a program serves in its `turn`-th turn: (query head, first packed query, queries from there to the
    sequence's end, key tiles; 0 where there is nothing to do).

    Work is in falling order of keys, and dealt out back and forth, so that programs get much the same.
    """
    programs = gl.num_programs(0)
    program = gl.program_id(0)
    item = turn * programs + gl.where(turn % 2 == 0, program, programs - 1 - program)
    sequence = item // NUM_Q_HEADS % num_sequences
    tile = max_tiles - 1 - item // NUM_Q_HEADS // num_sequences
    start = gl.load(query_start + sequence)
    query_len = gl.load(query_start + sequence + 1) - start
    first = tile * BLOCK
    exists = (tile >= 0) & (first < query_len) & (gl.load(seq_lens + sequence) == query_len)
    return item % NUM_Q_HEADS, start + first, query_len - first, gl.where(exists, tile + 1, 0)


@gluon.jit
def _attend(
    MINE: gl.constexpr, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, q_free, k_free, v_free,
    query_start, seq_lens, out, scale_log2, num_sequences, max_tiles, turns,
    NUM_Q_HEADS: gl.constexpr, Q_STAGES: gl.constexpr,
):  # fmt: skip
    """What a consuming warp group does: it attends from its half of the queries, number `MINE`."""
    ROWS: gl.constexpr = q_tiles.shape[1]
    BLOCK: gl.constexpr = k_tiles.shape[1]
    HEAD_SIZE: gl.constexpr = k_tiles.shape[2]
    STAGES: gl.constexpr = k_tiles.shape[0]
    dtype: gl.constexpr = k_tiles.dtype
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_SIZE, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    stride_out: gl.constexpr = NUM_Q_HEADS * HEAD_SIZE
    no_scores = gl.zeros([ROWS, BLOCK], gl.float32, S_LAYOUT)
    served = 0
    # Key (and value) tiles consumed so far: their buffers go round through the work.
    count = 0
    for turn in range(turns):
        head, first, live, num_tiles = _find_work(
            turn, query_start, seq_lens, num_sequences, max_tiles, NUM_Q_HEADS, BLOCK
        )
        if num_tiles > 0:
            q_stage = served % Q_STAGES
            q_tile = q_tiles.index(2 * q_stage + MINE)
            mbarrier.wait(q_ready.index(q_stage), served // Q_STAGES & 1)
            mbarrier.wait(k_ready.index(count % STAGES), count // STAGES & 1)
            k_tile = k_tiles.index(count % STAGES).permute((1, 0))
            scores = warpgroup_mma(q_tile, k_tile, no_scores, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, deps=[scores])
            mbarrier.arrive(k_free.index(count % STAGES), count=1)
            weights, largest, total = _first_softmax(scores, scale_log2, MINE * ROWS, S_LAYOUT)
            p = gl.convert_layout(weights.to(dtype), P_LAYOUT)
            accumulator = gl.zeros([ROWS, HEAD_SIZE], gl.float32, O_LAYOUT)
            end = count + num_tiles
            count += 1

            mbarrier.wait(k_ready.index(count % STAGES), count // STAGES & 1, pred=count < end)
            for tile in range(count, end):
                k_tile = k_tiles.index(tile % STAGES).permute((1, 0))
                scores = warpgroup_mma(q_tile, k_tile, no_scores, use_acc=False, is_async=True)
                before = tile - 1
                mbarrier.wait(v_ready.index(before % STAGES), before // STAGES & 1)
                accumulator = warpgroup_mma(p, v_tiles.index(before % STAGES), accumulator, is_async=True)
                scores = warpgroup_mma_wait(1, deps=[scores])
                mbarrier.arrive(k_free.index(tile % STAGES), count=1)
                weights, largest, total, shrink = _softmax(scores, largest, total, scale_log2)
                p = gl.convert_layout(weights.to(dtype), P_LAYOUT)
                # The next keys are waited for here, not where they are read: ptxas reorders within a basic
                # block, and would else wait for the values' product before the exponentials.
                ahead = tile + 1
                mbarrier.wait(k_ready.index(ahead % STAGES), ahead // STAGES & 1, pred=ahead < end)
                accumulator, p = warpgroup_mma_wait(0, deps=[accumulator, p])
                mbarrier.arrive(v_free.index(before % STAGES), count=1)
                accumulator = accumulator * gl.convert_layout(shrink, gl.SliceLayout(1, O_LAYOUT))[:, None]

            count = end
            last = end - 1
            mbarrier.wait(v_ready.index(last % STAGES), last // STAGES & 1)
            accumulator = warpgroup_mma(p, v_tiles.index(last % STAGES), accumulator, is_async=True)
            accumulator = warpgroup_mma_wait(0, deps=[accumulator])
            mbarrier.arrive(v_free.index(last % STAGES), count=1)
            inverse = 1.0 / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))
            first_row: gl.constexpr = MINE * ROWS
            _store(
                accumulator * inverse[:, None], q_tile, out + head * HEAD_SIZE, first + first_row,
                live - first_row, stride_out,
            )  # fmt: skip
            # The tile was written and read by threads, and is written by TMA next.
            fence_async_shared()
            mbarrier.arrive(q_free.index(q_stage), count=1)
            served += 1


@gluon.jit
def _copy_tiles(
    queries, qkv, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, q_free, k_free, v_free,
    query_start, seq_lens, num_sequences, max_tiles, turns,
    NUM_Q_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, Q_STAGES: gl.constexpr,
):  # fmt: skip
    """What the producing warp does: it keeps shared memory filled with tiles, ahead of their use."""
    ROWS: gl.constexpr = q_tiles.shape[1]
    BLOCK: gl.constexpr = k_tiles.shape[1]
    HEAD_SIZE: gl.constexpr = k_tiles.shape[2]
    STAGES: gl.constexpr = k_tiles.shape[0]
    GROUP: gl.constexpr = NUM_Q_HEADS // NUM_KV_HEADS
    served = 0
    count = 0
    for turn in range(turns):
        head, first, _, num_tiles = _find_work(
            turn, query_start, seq_lens, num_sequences, max_tiles, NUM_Q_HEADS, BLOCK
        )
        if num_tiles > 0:
            q_stage = served % Q_STAGES
            mbarrier.wait(q_free.index(q_stage), served // Q_STAGES & 1 ^ 1)
            mbarrier.expect(q_ready.index(q_stage), 2 * queries.block_type.nbytes)
            for half in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    queries,
                    [first + half * ROWS, head * HEAD_SIZE],
                    q_ready.index(q_stage),
                    q_tiles.index(2 * q_stage + half),
                )
            served += 1
            key_column = (NUM_Q_HEADS + head // GROUP) * HEAD_SIZE
            value_column = key_column + NUM_KV_HEADS * HEAD_SIZE
            for tile in range(num_tiles):
                stage = count % STAGES
                was_free = count // STAGES & 1 ^ 1
                first_key = first - tile * BLOCK
                mbarrier.wait(k_free.index(stage), was_free)
                mbarrier.expect(k_ready.index(stage), qkv.block_type.nbytes)
                tma.async_copy_global_to_shared(
                    qkv, [first_key, key_column], k_ready.index(stage), k_tiles.index(stage)
                )
                mbarrier.wait(v_free.index(stage), was_free)
                mbarrier.expect(v_ready.index(stage), qkv.block_type.nbytes)
                tma.async_copy_global_to_shared(
                    qkv, [first_key, value_column], v_ready.index(stage), v_tiles.index(stage)
                )
                count += 1


# The arrays are parts of a batch's, and begin at any entry: alignment would mean several compiles.
@gluon.jit(
    do_not_specialize=["num_sequences", "max_tiles", "turns"],
    do_not_specialize_on_alignment=["query_start", "seq_lens"],
)
def _fresh_prefill_kernel(
    queries,
    qkv,
    query_start,
    seq_lens,
    out,
    scale_log2,
    num_sequences,
    max_tiles,
    turns,
    NUM_Q_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    Q_STAGES: gl.constexpr,
    STAGES: gl.constexpr,
):
    ROWS: gl.constexpr = queries.block_type.shape[0]
    BLOCK: gl.constexpr = qkv.block_type.shape[0]
    HEAD_SIZE: gl.constexpr = qkv.block_type.shape[1]
    dtype: gl.constexpr = qkv.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [2 * Q_STAGES, ROWS, HEAD_SIZE], queries.layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, HEAD_SIZE], qkv.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, HEAD_SIZE], qkv.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [Q_STAGES, 1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [Q_STAGES, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(Q_STAGES):
        mbarrier.init(q_ready.index(stage), count=1)
        mbarrier.init(q_free.index(stage), count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(v_free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_attend, (
                0, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, q_free, k_free, v_free,
                query_start, seq_lens, out, scale_log2, num_sequences, max_tiles, turns,
                NUM_Q_HEADS, Q_STAGES,
            )),
            (_attend, (
                1, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, q_free, k_free, v_free,
                query_start, seq_lens, out, scale_log2, num_sequences, max_tiles, turns,
                NUM_Q_HEADS, Q_STAGES,
            )),
            (_copy_tiles, (
                queries, qkv, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, q_free, k_free, v_free,
                query_start, seq_lens, num_sequences, max_tiles, turns,
                NUM_Q_HEADS, NUM_KV_HEADS, Q_STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def _descriptor(qkv: torch.Tensor, rows: int, head_size: int) -> TensorDescriptor:
    """Of `qkv`, for copies of one head of `rows` tokens; tokens past the end read as zeros."""
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[qkv.dtype]
    box = [rows, head_size]
    return TensorDescriptor.from_tensor(qkv, box, gl.NVMMASharedLayout.get_default_for(box, dtype))


def supports_fresh_prefill(
    *, device: torch.device, dtype: torch.dtype, head_size: int, window: int | None
) -> bool:
    """Whether `fresh_prefill_attention` serves such a model there: its matrix instructions are those of
    compute capability 9.0, and of no other."""
    return (
        is_hopper(device)
        and dtype in (torch.bfloat16, torch.float16)
        and head_size in (64, 128)
        and window is None
    )


def fresh_prefill_attention(
    *,
    qkv: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    max_query_len: int,
    shape: AttentionShape,
    num_multiprocessors: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of packed fresh sequences over themselves; where `supports_fresh_prefill`.

    Args:
        qkv: [tokens, (num_q_heads + 2 * num_kv_heads) * head_size], contiguous, bfloat16 or float16: queries,
            keys and values, the first two normalised and rotated. All of it is finite.
        query_start: [batch + 1], int32: where each sequence's tokens start in `qkv`, and where the last ones
            end.
        seq_lens: [batch], int32: tokens of each sequence. Sequences that have more tokens than are in `qkv`
            are skipped.
        max_query_len: the most tokens of a fresh sequence, on the host.
        shape: the model's attention; without a window.
        num_multiprocessors: of the device.
        out: [tokens, num_q_heads, head_size], contiguous, to write into, or None for a new one. Tokens
            outside every fresh sequence are left as they are.

    Returns:
        `out`.
    """
    if shape.window is not None:
        raise ValueError(f"shape: expected no window, got one of {shape.window} keys")
    num_q_heads, head_size = shape.num_q_heads, shape.head_size
    if out is None:
        out = torch.empty((qkv.shape[0], num_q_heads, head_size), dtype=qkv.dtype, device=qkv.device)
    num_sequences = seq_lens.shape[0]
    max_tiles = triton.cdiv(max_query_len, BLOCK_M)
    work = max_tiles * num_sequences * num_q_heads
    programs = min(work, num_multiprocessors)
    _fresh_prefill_kernel[(programs,)](
        queries=_descriptor(qkv, BLOCK_M // 2, head_size),
        qkv=_descriptor(qkv, BLOCK_N, head_size),
        query_start=query_start,
        seq_lens=seq_lens,
        out=out,
        scale_log2=shape.scale_log2,
        num_sequences=num_sequences,
        max_tiles=max_tiles,
        turns=triton.cdiv(work, programs),
        NUM_Q_HEADS=num_q_heads,
        NUM_KV_HEADS=shape.num_kv_heads,
        Q_STAGES=2,
        STAGES=2,
        num_warps=4,
    )
    return out


def fresh_prefill_attention_reference(
    qkv: torch.Tensor, query_start: torch.Tensor, seq_lens: torch.Tensor, shape: AttentionShape
) -> torch.Tensor:
    """`fresh_prefill_attention` in torch, one sequence after the other, in fp32; zeros for tokens outside
    every fresh sequence."""
    heads = qkv.view(qkv.shape[0], -1, shape.head_size)
    q, k, v = heads.split([shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
    k, v = (x.repeat_interleave(shape.group, dim=1) for x in (k, v))
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    starts = query_start.tolist()
    for begin, end, seq_len in zip(starts[:-1], starts[1:], seq_lens.tolist(), strict=True):
        if seq_len != end - begin or not seq_len:
            continue
        scores = torch.einsum("mhd,nhd->hmn", q[begin:end].float(), k[begin:end].float()) * shape.scale
        hidden = torch.ones(seq_len, seq_len, dtype=torch.bool, device=q.device).triu(1)
        probabilities = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        out[begin:end] = torch.einsum("hmn,nhd->mhd", probabilities, v[begin:end].float()).to(q.dtype)
    return out
