"""Causal attention of packed, variable-length chunks of queries over a paged KV cache.

Keys and values are read from the cache alone: those of the chunk were written there before, beside those of a
cached prefix or of earlier chunks. The query heads that share a KV head are packed into one tile, beside
neighbouring tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import AttentionShape, PagedSequences
from dodona.kernels.devices import shared_memory


@triton.jit
def _attend_tiles(
    queries,
    largest,
    total,
    accumulator,
    query_position,
    keys,
    table_row,
    value_offset,
    stride_kv_block,
    scale_log2,
    low,
    high,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One pass of online softmax over the keys at positions [low, high); `low` is a multiple of BLOCK_N."""
    dim = tl.arange(0, HEAD_SIZE)
    offset = tl.arange(0, BLOCK_N)
    # The table is read one tile ahead of the keys, so that the two do not wait for one another.
    block = tl.load(table_row + (low + offset) // BLOCK_SIZE, mask=low + offset < high, other=0)
    for tile in range(low, high, BLOCK_N):
        position = tile + offset
        address = keys + block.to(tl.int64) * stride_kv_block + (position % BLOCK_SIZE) * HEAD_SIZE
        ahead = position + BLOCK_N
        block = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < high, other=0)
        if MASKED:
            exists = (position < high)[:, None]
            k = tl.load(address[:, None] + dim[None, :], mask=exists, other=0.0)
            v = tl.load(address[:, None] + value_offset + dim[None, :], mask=exists, other=0.0)
        else:
            k = tl.load(address[:, None] + dim[None, :])
            v = tl.load(address[:, None] + value_offset + dim[None, :])
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale_log2
        if MASKED:
            seen = position[None, :] <= query_position[:, None]
            if WINDOW > 0:
                seen = seen & (position[None, :] > query_position[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # A query may see none of the keys so far: its maximum is still -inf, and -inf - -inf is not a number.
        reference = tl.where(new_largest > float("-inf"), new_largest, 0.0)
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(largest - reference)
        total = total * shrink + tl.sum(weights, axis=1)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
        largest = new_largest
    return largest, total, accumulator


# The arrays are parts of a batch's, and begin at any entry: alignment would mean several compiles.
@triton.jit(
    do_not_specialize=["skip_fresh"], do_not_specialize_on_alignment=["rows", "query_start", "seq_lens"]
)
def _paged_prefill_kernel(
    q,
    kv_cache,
    block_table,
    rows,
    query_start,
    seq_lens,
    out,
    scale_log2,
    stride_q,
    stride_kv_block,
    stride_table,
    skip_fresh,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    sequence = tl.program_id(1)
    kv_head = tl.program_id(2)
    num_kv_heads = tl.num_programs(2)
    # Later tiles see more keys: they start first, so that the short ones fill the gaps at the end.
    first_token = (tl.num_programs(0) - 1 - tl.program_id(0)) * TOKENS
    start = tl.load(query_start + sequence)
    query_len = tl.load(query_start + sequence + 1) - start
    if first_token >= query_len:
        return
    row = tl.load(rows + sequence)
    context = tl.load(seq_lens + sequence) - query_len
    if (skip_fresh != 0) & (context == 0):
        return

    member = tl.arange(0, BLOCK_M)
    token = first_token + member // GROUP
    head = kv_head * GROUP + member % GROUP
    live = (member < TOKENS * GROUP) & (token < query_len)
    query_position = context + token
    dim = tl.arange(0, HEAD_SIZE)
    packed = (start + token).to(tl.int64)
    queries = tl.load(
        q + packed[:, None] * stride_q + head[:, None] * HEAD_SIZE + dim[None, :],
        mask=live[:, None],
        other=0.0,
    )

    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, HEAD_SIZE), tl.float32)
    table_row = block_table + row.to(tl.int64) * stride_table
    keys = kv_cache + kv_head * (BLOCK_SIZE * HEAD_SIZE)
    value_offset = num_kv_heads * (BLOCK_SIZE * HEAD_SIZE)
    first_position = context + first_token
    high = tl.minimum(context + query_len, first_position + TOKENS)
    low = 0
    unmasked = (first_position + 1) // BLOCK_N * BLOCK_N
    if WINDOW > 0:
        low = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        unmasked = low
    else:
        # Keys that all queries of the tile see need no mask.
        largest, total, accumulator = _attend_tiles(
            queries, largest, total, accumulator, query_position, keys, table_row, value_offset,
            stride_kv_block, scale_log2, low, unmasked, WINDOW, False, HEAD_SIZE, BLOCK_SIZE, BLOCK_N,
        )  # fmt: skip
    largest, total, accumulator = _attend_tiles(
        queries, largest, total, accumulator, query_position, keys, table_row, value_offset,
        stride_kv_block, scale_log2, unmasked, high, WINDOW, True, HEAD_SIZE, BLOCK_SIZE, BLOCK_N,
    )  # fmt: skip

    result = accumulator / tl.where(total > 0, total, 1.0)[:, None]
    heads = num_kv_heads * GROUP
    tl.store(
        out + (packed[:, None] * heads + head[:, None]) * HEAD_SIZE + dim[None, :],
        result.to(out.dtype.element_ty),
        mask=live[:, None],
    )


def _tile_sizes(
    row_bytes: int, wanted_m: int, max_query_len: int, most_shared: int
) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, warps, stages) within a block's shared memory; as measured on an H200."""
    if row_bytes > 512:
        return max(16, min(32, wanted_m)), 16, 4, 2
    if row_bytes > 256:
        return max(16, min(64, wanted_m)), 32, 4, 2
    block_m = max(16, min(128, wanted_m))
    if block_m < 128:
        return block_m, 64, 4, 2
    if max_query_len < 1024:
        return 128, 32, 8, 4
    block_n = 128 if row_bytes * (128 + 3 * 2 * 128) <= most_shared else 64
    stages = 3 if row_bytes * (128 + 3 * 2 * block_n) <= most_shared else 2
    return 128, block_n, 8, stages


def paged_prefill_attention(
    *,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    query_start: torch.Tensor,
    max_query_len: int,
    shape: AttentionShape,
    skip_fresh: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of packed chunks over their sequences' keys so far.

    Args:
        q: [tokens, num_q_heads, head_size]; the last two dimensions are contiguous.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_size], dtype of `q`; the chunks' own keys are
            in it.
        sequences: of the batch, none of them padding; a chunk is the end of its sequence.
        query_start: [batch + 1], int32: where each sequence's queries start in `q`, and where the last ones
            end.
        max_query_len: the longest chunk, on the host.
        shape: the model's attention.
        skip_fresh: leave out sequences without context: `fresh_prefill_attention` serves them.
        out: [tokens, num_q_heads, head_size], contiguous, to write into, or None for a new one. Tokens
            outside every chunk that is served are left as they are.

    Returns:
        `out`.
    """
    head_size, group, block_table = shape.head_size, shape.group, sequences.block_table
    if out is None:
        out = torch.empty((q.shape[0], shape.num_q_heads, head_size), dtype=q.dtype, device=q.device)
    wanted_m = triton.next_power_of_2(max_query_len * group)
    block_m, block_n, num_warps, num_stages = _tile_sizes(
        head_size * q.element_size(), wanted_m, max_query_len, shared_memory(q.device)
    )
    block_m = max(block_m, triton.next_power_of_2(group))
    grid = (triton.cdiv(max_query_len, block_m // group), sequences.rows.shape[0], shape.num_kv_heads)
    _paged_prefill_kernel[grid](
        q=q,
        kv_cache=kv_cache,
        block_table=block_table,
        rows=sequences.rows,
        query_start=query_start,
        seq_lens=sequences.seq_lens,
        out=out,
        scale_log2=shape.scale_log2,
        stride_q=q.stride(0),
        stride_kv_block=kv_cache.stride(0),
        stride_table=block_table.stride(0),
        skip_fresh=int(skip_fresh),
        WINDOW=shape.window or 0,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=kv_cache.shape[3],
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out


def paged_prefill_attention_reference(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    sequences: PagedSequences,
    query_start: torch.Tensor,
    shape: AttentionShape,
) -> torch.Tensor:
    """`paged_prefill_attention` in torch, one sequence after the other, in fp32; zeros for tokens outside
    every chunk."""
    _, _, num_kv_heads, block_size, head_size = kv_cache.shape
    out = torch.zeros_like(q)
    starts = query_start.tolist()
    for i, (row, seq_len) in enumerate(
        zip(sequences.rows.tolist(), sequences.seq_lens.tolist(), strict=True)
    ):
        begin, end = starts[i], starts[i + 1]
        if begin == end:
            continue
        blocks = sequences.block_table[row, : -(-seq_len // block_size)].long()
        kv = kv_cache[blocks].float().permute(1, 2, 0, 3, 4).reshape(2, num_kv_heads, -1, head_size)
        k, v = kv[:, :, :seq_len].repeat_interleave(shape.group, dim=1)
        key_position = torch.arange(seq_len, device=q.device)
        query_position = torch.arange(seq_len - (end - begin), seq_len, device=q.device)[:, None]
        seen = key_position <= query_position
        if shape.window:
            seen &= key_position > query_position - shape.window
        scores = torch.einsum("mhd,hnd->hmn", q[begin:end].float(), k) * shape.scale
        probabilities = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        out[begin:end] = torch.einsum("hmn,hnd->mhd", probabilities, v).to(q.dtype)
    return out
