"""The output projection of one token, which also weighs the parts that attention leaves (see
`attention.splits`).

    residual + attended @ weight.T

Every program weighs all parts for itself. They are some kilobytes in the L2 cache, and reading them takes one
round trip, as reading the attended vector would.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import LOG2_E
from dodona.kernels.attention.splits import NO_SCORE, AttentionParts, split_keys, split_weights
from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.linear.single_token_linear import as_words, first_of, second_of

LARGEST_ATTENDED = 4096
"""Bytes of an attended vector up to which its parts fit in registers beside the weights."""


@triton.jit
def _attended_linear_kernel(
    parts,
    parts_lse,
    rows,
    seq_lens,
    weight,
    residual,
    N: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """`HEAD_SIZE` counts words: two elements each with `PAIRS`."""
    if DEPENDENT:
        let_next_start()
    K: tl.constexpr = NUM_HEADS * HEAD_SIZE
    BLOCK_K: tl.constexpr = BLOCK_HEADS * HEAD_SIZE
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]
    w = tl.load(weight + n.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0)
    row = tl.load(rows)
    _start, _end, _tiles, active = split_keys(row, tl.load(seq_lens), 0, WINDOW, TILE, MAX_SPLITS)
    if DEPENDENT:
        wait_for_inputs()
    head = tl.arange(0, BLOCK_HEADS)
    dim = tl.arange(0, HEAD_SIZE)[None, :]
    lse = ()
    values = ()
    for i in tl.static_range(MAX_SPLITS):
        exists = (head < NUM_HEADS) & (i < active)
        entry = head * MAX_SPLITS + i
        lse = lse + (tl.load(parts_lse + entry, mask=exists, other=NO_SCORE),)
        source = parts + entry[:, None] * HEAD_SIZE + dim
        values = values + (tl.load(source, mask=exists[:, None], other=0),)
    if ADDS:
        before = tl.load(residual + n, mask=n < N, other=0.0)
    weights = split_weights(lse, active, MAX_SPLITS)
    x = tl.zeros((BLOCK_HEADS, HEAD_SIZE), tl.float32)
    for i in tl.static_range(MAX_SPLITS):
        x += weights[i][:, None] * first_of(values[i], PAIRS)
    products = tl.reshape(x, (BLOCK_K,))[None, :] * first_of(w, PAIRS)
    if PAIRS:
        x = tl.zeros((BLOCK_HEADS, HEAD_SIZE), tl.float32)
        for i in tl.static_range(MAX_SPLITS):
            x += weights[i][:, None] * second_of(values[i])
        products += tl.reshape(x, (BLOCK_K,))[None, :] * second_of(w)
    product = tl.sum(products, axis=1)
    if ADDS:
        product += before.to(tl.float32)
    tl.store(residual + n, product.to(residual.dtype.element_ty), mask=n < N)


def attended_linear(
    *,
    parts: AttentionParts,
    weight: torch.Tensor,
    residual: torch.Tensor,
    adds: bool = True,
    n: int = 8,
    num_warps: int = 8,
) -> torch.Tensor:
    """`residual + attended @ weight.T` of one sequence, where `attended` is the weighed sum of its parts.

    Args:
        parts: of a batch of one.
        weight: [columns, num_q_heads * head_size], contiguous, dtype of the parts.
        residual: [1, columns], contiguous: overwritten by the sum, and returned.
        adds: whether the sum has the residual; else it is the product alone.
        n: output columns per program.
        num_warps: warps per program.

    Returns:
        `residual`: fp32 sums rounded once to its dtype.
    """
    batch, num_heads, num_splits, head_size = parts.values.shape
    if batch != 1:
        raise ValueError(f"parts: expected those of one sequence, got {batch}")
    columns = weight.shape[0]
    pairs = weight.dtype == torch.bfloat16
    dependent = supports_dependent_launch(weight.device)
    _attended_linear_kernel[(triton.cdiv(columns, n),)](
        parts=as_words(parts.values, pairs),
        parts_lse=parts.lse,
        rows=parts.sequences.rows,
        seq_lens=parts.sequences.seq_lens,
        weight=as_words(weight, pairs),
        residual=residual,
        N=columns,
        NUM_HEADS=num_heads,
        HEAD_SIZE=head_size // 2 if pairs else head_size,
        WINDOW=parts.window,
        TILE=parts.tile,
        MAX_SPLITS=num_splits,
        PAIRS=pairs,
        DEPENDENT=dependent,
        ADDS=adds,
        BLOCK_N=n,
        BLOCK_HEADS=triton.next_power_of_2(num_heads),
        num_warps=num_warps,
        **launch_options(dependent),
    )
    return residual


def attended_linear_reference(
    parts: AttentionParts, weight: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """`attended_linear` in torch, in fp32; nothing in place."""
    row, seq_len = int(parts.sequences.rows[0]), int(parts.sequences.seq_lens[0])
    end = max(0, seq_len - 1) if row >= 0 else 0
    tiles = -(-min(end, parts.window - 1 if parts.window else end) // parts.tile)
    per_split = max(1, -(-tiles // parts.values.shape[2]))
    active = max(1, -(-tiles // per_split))
    shares = torch.softmax(parts.lse[0, :, :active] / LOG2_E, dim=-1)
    attended = torch.einsum("hs,hsd->hd", shares, parts.values[0, :, :active].float())
    return (residual.float() + attended.reshape(1, -1) @ weight.float().T).to(residual.dtype)
