"""Several linear layers of one token, in one launch: queries, keys and values, or gate and up.

As `single_token_linear`, whose loops these are; the programs of one layer follow those of the one before.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.linear.single_token_linear import (
    Tiles,
    as_words,
    choose_tiles,
    first_of,
    second_of,
)

MOST_LAYERS = 3


@triton.jit
def _columns(
    x,
    weight,
    bias,
    out,
    block,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program's columns of one layer."""
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    tile = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    weights = ()
    for i in tl.static_range(AHEAD):
        inside = (n < N)[:, None] & (i * BLOCK_K + k < K)[None, :]
        weights = weights + (tl.load(tile + i * BLOCK_K, mask=inside, other=0),)
    if DEPENDENT:
        wait_for_inputs()
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for i in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        exists = i * BLOCK_K + k < K
        if i < AHEAD:
            w = weights[i]
        else:
            w = tl.load(tile + i * BLOCK_K, mask=(n < N)[:, None] & exists[None, :], other=0)
        words = tl.load(x + i * BLOCK_K + k, mask=exists, other=0)
        products += first_of(words, PAIRS)[None, :] * first_of(w, PAIRS)
        if PAIRS:
            products += second_of(words)[None, :] * second_of(w)
    product = tl.sum(products, axis=1)
    if bias is not None:
        product += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, product.to(out.dtype.element_ty), mask=n < N)


@triton.jit
def _linears_kernel(
    x,
    weight_0,
    weight_1,
    weight_2,
    bias_0,
    bias_1,
    bias_2,
    out,
    N_0: tl.constexpr,
    N_1: tl.constexpr,
    N_2: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    FIRST: tl.constexpr = (N_0 + BLOCK_N - 1) // BLOCK_N
    SECOND: tl.constexpr = FIRST + (N_1 + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0)
    if block < FIRST:
        _columns(x, weight_0, bias_0, out, block, N_0, K, PAIRS, DEPENDENT, AHEAD, BLOCK_N, BLOCK_K)
    elif block < SECOND:
        _columns(
            x, weight_1, bias_1, out + N_0, block - FIRST, N_1, K, PAIRS, DEPENDENT, AHEAD, BLOCK_N, BLOCK_K
        )
    elif N_2 > 0:
        _columns(
            x, weight_2, bias_2, out + N_0 + N_1, block - SECOND, N_2, K, PAIRS, DEPENDENT, AHEAD, BLOCK_N,
            BLOCK_K,
        )  # fmt: skip


def single_token_linears(
    *,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, ...]:
    """`x @ weight.T + bias` of one row for each weight.

    Args:
        x: [1, inner], float, contiguous.
        weights: two or three, [columns, inner] each, contiguous, dtype of `x`.
        biases: [columns], or None, for each of them.
        tiles: how to cut the work up; None to choose.

    Returns:
        [1, columns] of each: fp32 sums rounded once to the dtype of `x`. They share memory.
    """
    rows, inner = x.shape
    if rows != 1:
        raise ValueError(f"x: expected one row, got {rows}")
    if not 2 <= len(weights) <= MOST_LAYERS:
        raise ValueError(f"weights: expected two or {MOST_LAYERS}, got {len(weights)}")
    columns = [len(weight) for weight in weights]
    if tiles is None:
        tiles = choose_tiles(sum(columns), inner, silu_mul=False)
    out = torch.empty((1, sum(columns)), dtype=x.dtype, device=x.device)
    dependent = supports_dependent_launch(x.device)
    pairs = x.dtype == torch.bfloat16 and inner % 2 == 0
    words = inner // 2 if pairs else inner
    block_k = min(tiles.k // 2 if pairs else tiles.k, triton.next_power_of_2(words))
    last = len(weights) == MOST_LAYERS
    _linears_kernel[(sum(triton.cdiv(n, tiles.n) for n in columns),)](
        x=as_words(x, pairs),
        weight_0=as_words(weights[0], pairs),
        weight_1=as_words(weights[1], pairs),
        weight_2=as_words(weights[2], pairs) if last else None,
        bias_0=biases[0],
        bias_1=biases[1],
        bias_2=biases[2] if last else None,
        out=out,
        N_0=columns[0],
        N_1=columns[1],
        N_2=columns[2] if last else 0,
        K=words,
        PAIRS=pairs,
        DEPENDENT=dependent,
        AHEAD=min(tiles.ahead, triton.cdiv(words, block_k)),
        BLOCK_N=tiles.n,
        BLOCK_K=block_k,
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return out.split(columns, dim=1)


def single_token_linears_reference(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, ...]:
    """`single_token_linears` in torch, in fp32."""
    products = [x.float() @ weight.float().T for weight in weights]
    return tuple(
        (product if bias is None else product + bias.float()).to(x.dtype)
        for product, bias in zip(products, biases, strict=True)
    )
