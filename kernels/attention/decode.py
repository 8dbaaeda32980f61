"""Attention of one query token per sequence over a paged KV cache.

A fixed number of programs share the keys of all sequences evenly (see `decode_plan`). Where a sequence is
shared by several programs, each leaves a partial sum with its log-sum-exp, and the one that ends last reduces
them. The query heads that share a KV head form one tile, so that keys and values are read once.

What comes before attention may be part of it: queries and keys straight from the qkv projection are
normalised and rotated here, and the new key and value are written to the cache by the program that has the
sequence's end, which takes them from registers.

A plan chooses between two kernels: this module's, which runs everywhere, and that of `stream`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.decode_plan import DecodePlan, plan_width
from dodona.kernels.attention.stream import stream_decode_kernel
from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)

LEAST_SHARE = 64
"""Fewest keys that a program takes: so many cost about as much as it costs to begin."""


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
def _reduce_parts(
    partial_out,
    partial_lse,
    out,
    first_program,
    parts,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Weigh the partial results of `GROUP` heads by `parts` programs into `out`, `PARTS` at a time.

    The copy of this function in `stream` is Gluon, where layouts are explicit.
    """
    dim = tl.arange(0, HEAD_SIZE)
    for member in tl.static_range(GROUP):
        largest = float("-inf")
        total = 0.0
        result = tl.zeros((HEAD_SIZE,), tl.float32)
        for base in range(0, parts, PARTS):
            part = base + tl.arange(0, PARTS)
            exists = part < parts
            # A program's second entry is for a sequence that it begins, its first for one it goes on with.
            entry = (2 * (first_program + part) + (part == 0).to(tl.int32)) * GROUP + member
            # Other programs wrote them during this launch: they must come from the L2.
            lse = tl.load(partial_lse + entry, mask=exists, other=float("-inf"), cache_modifier=".cg")
            partial = tl.load(
                partial_out + entry[:, None] * HEAD_SIZE + dim[None, :],
                mask=exists[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            new_largest = tl.maximum(largest, tl.max(lse, axis=0))
            # A part may have seen no key: its sum is 0, its log-sum-exp -inf, and -inf - -inf is no number.
            reference = tl.where(new_largest > float("-inf"), new_largest, 0.0)
            weight = tl.exp2(lse - reference)
            shrink = tl.exp2(largest - reference)
            total = total * shrink + tl.sum(weight, axis=0)
            result = result * shrink + tl.sum(partial * weight[:, None], axis=0)
            largest = new_largest
        tl.store(out + member * HEAD_SIZE + dim, (result / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["batch"])
def _paged_decode_kernel(
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
    WINDOW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FROM_QKV: tl.constexpr,
    HAS_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    program = tl.program_id(0)
    # The step's inputs and its plan were there before its first product: only `q` has to be waited for.
    entries = tl.arange(0, WIDTH)
    ends = tl.load(tile_ends + entries, mask=entries < batch, other=2147483647 // NUM_KV_HEADS) * NUM_KV_HEADS
    total_tiles = tl.load(tile_ends + batch - 1) * NUM_KV_HEADS
    share = tl.maximum(tl.cdiv(total_tiles, tl.num_programs(0)), LEAST_TILES)
    at = program * share
    stop = tl.minimum(at + share, total_tiles)
    # The first program always goes on, so the kernel as a whole waits for its inputs.
    if at >= stop:
        return
    sequence = tl.sum((ends <= at).to(tl.int32), axis=0)
    before = tl.max(tl.where(ends <= at, ends, 0), axis=0)
    tiles = tl.load(tile_ends + sequence) - before // NUM_KV_HEADS
    kv_head = (at - before) // tiles
    tile = (at - before) % tiles

    dim = tl.arange(0, HEAD_SIZE)
    swapped = (dim + HEAD_SIZE // 2) % HEAD_SIZE
    offset = tl.arange(0, BLOCK_N)
    member = tl.arange(0, BLOCK_M)
    in_group = member < GROUP
    dtype = kv_cache.dtype.element_ty
    value_offset = NUM_KV_HEADS * (BLOCK_SIZE * HEAD_SIZE)

    while at < stop:
        count = tl.minimum(tiles - tile, stop - at)
        has_end = tile + count == tiles
        row = tl.load(rows + sequence)
        # A padded entry of the batch has row -1: no keys, and zeros as its result.
        seq_len = tl.where(row < 0, 0, tl.load(seq_lens + sequence))
        start = 0
        if WINDOW > 0:
            start = tl.maximum(seq_len - WINDOW, 0)
        # Keys to be read from the cache end here.
        end = seq_len
        if FROM_QKV:
            end = tl.maximum(seq_len - 1, 0)
        # A sequence's first tile has no keys: it stands for the work of beginning.
        low = (start // BLOCK_N + tl.maximum(tile - 1, 0)) * BLOCK_N
        high = tl.minimum(end, (start // BLOCK_N + tile + count - 1) * BLOCK_N)
        table_row = block_table + row.to(tl.int64) * stride_table
        keys = kv_cache + kv_head * (BLOCK_SIZE * HEAD_SIZE)
        # The table is read one tile ahead of the keys, so that the two do not wait for one another.
        block = tl.load(table_row + (low + offset) // BLOCK_SIZE, mask=low + offset < high, other=0)

        if DEPENDENT:
            wait_for_inputs()
        head = kv_head * GROUP + member
        query_row = q + sequence.to(tl.int64) * stride_q
        queries = tl.load(
            query_row + head[:, None] * HEAD_SIZE + dim[None, :], mask=in_group[:, None], other=0.0
        )
        largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        accumulator = tl.zeros((BLOCK_M, HEAD_SIZE), tl.float32)
        if FROM_QKV:
            angles = cos_sin + tl.load(positions + sequence).to(tl.int64) * HEAD_SIZE + dim % (HEAD_SIZE // 2)
            cos = tl.load(angles)[None, :]
            sin = tl.load(angles + HEAD_SIZE // 2)[None, :]
            sin = tl.where(dim[None, :] < HEAD_SIZE // 2, -sin, sin)
            weight = cos
            weight_other = cos
            if HAS_NORM:
                weight = tl.load(q_weight + dim)[None, :]
                weight_other = tl.load(q_weight + swapped)[None, :]
            queries_swapped = tl.load(
                query_row + head[:, None] * HEAD_SIZE + swapped[None, :], mask=in_group[:, None], other=0.0
            )
            queries = _rotated(
                queries, queries_swapped, weight, weight_other, cos, sin, eps, HAS_NORM, HEAD_SIZE
            ).to(dtype)
            if has_end & (row >= 0):
                new_key = query_row + (NUM_KV_HEADS * GROUP + kv_head) * HEAD_SIZE
                k_own = tl.load(new_key + dim)[None, :]
                k_swapped = tl.load(new_key + swapped)[None, :]
                v_new = tl.load(new_key + NUM_KV_HEADS * HEAD_SIZE + dim)[None, :]
                slot = tl.load(slots + sequence)
                if HAS_NORM:
                    weight = tl.load(k_weight + dim)[None, :]
                    weight_other = tl.load(k_weight + swapped)[None, :]
                k_new = _rotated(
                    k_own, k_swapped, weight, weight_other, cos, sin, eps, HAS_NORM, HEAD_SIZE
                ).to(dtype)
                if slot >= 0:
                    place = keys + (slot // BLOCK_SIZE).to(tl.int64) * stride_kv_block
                    place += (slot % BLOCK_SIZE) * HEAD_SIZE
                    tl.store(place + dim[None, :], k_new)
                    tl.store(place + value_offset + dim[None, :], v_new)
                largest = tl.sum(queries.to(tl.float32) * k_new.to(tl.float32), axis=1) * scale_log2
                total += 1.0
                accumulator += v_new.to(tl.float32)

        for first in range(low, high, BLOCK_N):
            position = first + offset
            seen = (position >= start) & (position < high)
            address = keys + block.to(tl.int64) * stride_kv_block + (position % BLOCK_SIZE) * HEAD_SIZE
            ahead = position + BLOCK_N
            block = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < high, other=0)
            k = tl.load(address[:, None] + dim[None, :], mask=seen[:, None], other=0.0)
            v = tl.load(address[:, None] + value_offset + dim[None, :], mask=seen[:, None], other=0.0)
            largest, total, accumulator = _attend(
                queries, k, v, seen, largest, total, accumulator, scale_log2
            )

        result = accumulator / tl.where(total > 0, total, 1.0)[:, None]
        pair = sequence.to(tl.int64) * NUM_KV_HEADS + kv_head
        out_group = out + pair * (GROUP * HEAD_SIZE)
        first_program = (at - tile) // share
        parts = (at - tile + tiles - 1) // share - first_program + 1
        if parts == 1:
            tl.store(
                out_group + member[:, None] * HEAD_SIZE + dim[None, :],
                result.to(out.dtype.element_ty),
                mask=in_group[:, None],
            )
        else:
            entry = (2 * program + (program == first_program).to(tl.int32)) * GROUP + member
            tl.store(partial_lse + entry, largest + tl.log2(tl.where(total > 0, total, 1.0)), mask=in_group)
            tl.store(partial_out + entry[:, None] * HEAD_SIZE + dim[None, :], result, mask=in_group[:, None])
            # All of a program's writes come before its arrival, and the last one's reads after all arrivals.
            tl.debug_barrier()
            if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == parts - 1:
                tl.store(arrivals + pair, 0)
                _reduce_parts(partial_out, partial_lse, out_group, first_program, parts, GROUP, HEAD_SIZE, 8)

        at += count
        tile = 0
        kv_head += 1
        if kv_head == NUM_KV_HEADS:
            kv_head = 0
            sequence += 1
            if at < stop:
                tiles = tl.load(tile_ends + sequence) - tl.load(tile_ends + sequence - 1)


def paged_decode_attention(
    *,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    plan: DecodePlan,
    arrivals: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each sequence's last token over its keys, which are all in the cache.

    Args:
        q: [batch, num_q_heads, head_size]; the last two dimensions are contiguous.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], dtype of `q`.
        sequences: of the batch. The result of a padded entry is zeros.
        shape: the model's attention.
        plan: of `sequences` and `shape`, with the new key included.
        arrivals: [batch * num_kv_heads or more], int32, zeros before and after; None for new ones.
        out: [batch, num_q_heads, head_size], contiguous, to write into, or None for a new one.

    Returns:
        `out`.
    """
    if not plan.includes_new_key:
        raise ValueError("plan: expected one that includes the new key, which is in the cache here")
    return _launch(
        q=q,
        tokens=None,
        norm=None,
        kv_cache=kv_cache,
        sequences=sequences,
        shape=shape,
        plan=plan,
        arrivals=arrivals,
        out=out,
    )


def decode_attention_from_qkv(
    *,
    qkv: torch.Tensor,
    tokens: NewTokens,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    plan: DecodePlan,
    arrivals: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`rotary.qk_norm_rope_kv_write` and `paged_decode_attention` in one launch.

    Args:
        qkv: [batch, (num_q_heads + 2 * num_kv_heads) * head_size], contiguous: one token per sequence; not
            modified.
        tokens: one per sequence.
        norm: the layer's norm of queries and keys; None where the model has none.
        plan: of `sequences` and `shape`, without the new key.

    The rest are those of `paged_decode_attention`.

    Returns:
        `out`.
    """
    if plan.includes_new_key:
        raise ValueError("plan: expected one without the new key, which is not in the cache yet")
    return _launch(
        q=qkv,
        tokens=tokens,
        norm=norm,
        kv_cache=kv_cache,
        sequences=sequences,
        shape=shape,
        plan=plan,
        arrivals=arrivals,
        out=out,
    )


def _launch(
    *,
    q: torch.Tensor,
    tokens: NewTokens | None,
    norm: QKNorm | None,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    shape: AttentionShape,
    plan: DecodePlan,
    arrivals: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Launch the plan's kernel over queries, or over the whole qkv projection where there are `tokens`."""
    batch, num_kv_heads, head_size, group = q.shape[0], shape.num_kv_heads, shape.head_size, shape.group
    tiles = plan.tiles
    members = triton.next_power_of_2(group)
    if tiles.streams:
        if group > 16:
            raise ValueError(f"num_q_heads: expected at most 16 per KV head, got {group}")
        kernel, of_kernel = stream_decode_kernel, {"MEMBERS": members, "STAGES": tiles.num_stages}
    else:
        kernel, of_kernel = (
            _paged_decode_kernel,
            {"BLOCK_M": max(16, members), "num_stages": tiles.num_stages},
        )
    if out is None:
        out = torch.empty((batch, shape.num_q_heads, head_size), dtype=q.dtype, device=q.device)
    if arrivals is None:
        arrivals = torch.zeros(batch * num_kv_heads, dtype=torch.int32, device=q.device)
    entries = 2 * plan.num_programs * group
    partial_out = torch.empty((entries, head_size), dtype=torch.float32, device=q.device)
    partial_lse = torch.empty(entries, dtype=torch.float32, device=q.device)
    dependent = supports_dependent_launch(q.device)
    kernel[(plan.num_programs,)](
        q=q,
        kv_cache=kv_cache,
        block_table=sequences.block_table,
        rows=sequences.rows,
        seq_lens=sequences.seq_lens,
        tile_ends=plan.tile_ends,
        positions=None if tokens is None else tokens.positions,
        slots=None if tokens is None else tokens.slots,
        cos_sin=None if tokens is None else tokens.cos_sin,
        q_weight=None if norm is None else norm.q_weight,
        k_weight=None if norm is None else norm.k_weight,
        eps=0.0 if norm is None else norm.eps,
        out=out,
        partial_out=partial_out,
        partial_lse=partial_lse,
        arrivals=arrivals,
        scale_log2=shape.scale_log2,
        batch=batch,
        stride_q=q.stride(0),
        stride_kv_block=kv_cache.stride(0),
        stride_table=sequences.block_table.stride(0),
        WINDOW=shape.window or 0,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=kv_cache.shape[3],
        FROM_QKV=tokens is not None,
        HAS_NORM=norm is not None,
        DEPENDENT=dependent,
        LEAST_TILES=max(1, LEAST_SHARE // tiles.n),
        BLOCK_N=tiles.n,
        WIDTH=plan_width(batch),
        num_warps=tiles.num_warps,
        **of_kernel,
        **launch_options(dependent),
    )
    return out


def paged_decode_attention_reference(
    q: torch.Tensor, kv_cache: torch.Tensor, sequences: PagedSequences, shape: AttentionShape
) -> torch.Tensor:
    """`paged_decode_attention` in torch, one sequence after the other, in fp32."""
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    out = torch.zeros_like(q)
    for i, (row, seq_len) in enumerate(
        zip(sequences.rows.tolist(), sequences.seq_lens.tolist(), strict=True)
    ):
        if row < 0:
            continue
        blocks = sequences.block_table[row, : -(-seq_len // block_size)].long()
        kv = kv_cache[blocks].float().permute(1, 2, 0, 3, 4).reshape(2, num_kv_heads, -1, head_size)
        first = max(0, seq_len - shape.window) if shape.window else 0
        k, v = kv[:, :, first:seq_len].repeat_interleave(shape.group, dim=1)
        probabilities = torch.softmax(torch.einsum("hd,hnd->hn", q[i].float(), k) * shape.scale, dim=-1)
        out[i] = torch.einsum("hn,hnd->hd", probabilities, v).to(q.dtype)
    return out
