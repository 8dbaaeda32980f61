"""Linear layers of a step with one token, fused with what comes before and after them.

    out = epilogue(norm(x) @ weight.T)

Such a step is bound by reading weights and by the number of launches. Weights stream through registers into
plain multiply-adds in fp32; a kernel begins to fetch them while the one before it still runs, where the
GPU can do that (see `dependent_launch`). The RMS norm in front costs nothing: its factor is one number, so
the sum of squares is taken along while the product runs, and the product is scaled at the end. Behind it, the
residual is added in place, or SiLU of the gate multiplies the up projection, so that no intermediate leaves
the kernel.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.l1_cache import prefer_l1_cache

PLAIN, ADD, SILU_MUL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut up.

    `k` should be a multiple of 256 times `num_warps` for 2-byte elements: then all loads have one layout, and
    none passes through shared memory.
    """

    n: int
    """Output columns per program."""
    k: int
    """Inner elements per tile."""
    num_warps: int
    ahead: int = 1
    """Tiles fetched before the kernel waits for its inputs."""


@triton.jit
def first_of(words, PAIRS: tl.constexpr):
    """The values in fp32; with `PAIRS`, those of the first of two bfloat16 in each int32."""
    if PAIRS:
        return (words << 16).to(tl.float32, bitcast=True)
    else:
        return words.to(tl.float32)


@triton.jit
def second_of(words):
    """The second of two bfloat16 in each int32, in fp32."""
    return (words & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _add_products(products, first_x, second_x, words, PAIRS: tl.constexpr):
    """`products` and the products of one tile: per thread one multiply-add for each weight."""
    products += first_x[None, :] * first_of(words, PAIRS)
    if PAIRS:
        products += second_x[None, :] * second_of(words)
    return products


@prefer_l1_cache
@triton.jit
def _matvec_kernel(
    x,
    weight,
    norm_weight,
    residual,
    out,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    tile = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    column_exists = (n < N)[:, None]
    weights = ()
    ups = ()
    norms = ()
    for i in tl.static_range(AHEAD):
        exists = i * BLOCK_K + k < K
        inside = column_exists & exists[None, :]
        weights = weights + (tl.load(tile + i * BLOCK_K, mask=inside, other=0),)
        if EPILOGUE == SILU_MUL:
            ups = ups + (tl.load(tile + (N * K + i * BLOCK_K), mask=inside, other=0),)
        if HAS_NORM:
            norms = norms + (tl.load(norm_weight + i * BLOCK_K + k, mask=exists, other=0),)
    if DEPENDENT:
        wait_for_inputs()
    # All that could not be read before is asked for at once.
    xs = ()
    for i in tl.static_range(AHEAD):
        xs = xs + (tl.load(x + i * BLOCK_K + k, mask=i * BLOCK_K + k < K, other=0),)
    if EPILOGUE == ADD:
        before = tl.load(residual + n, mask=n < N, other=0.0)
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    products_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for i in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        exists = i * BLOCK_K + k < K
        inside = column_exists & exists[None, :]
        if i < AHEAD:
            w = weights[i]
            words = xs[i]
        else:
            w = tl.load(tile + i * BLOCK_K, mask=inside, other=0)
            words = tl.load(x + i * BLOCK_K + k, mask=exists, other=0)
        first_x = first_of(words, PAIRS)
        second_x = first_x
        if PAIRS:
            second_x = second_of(words)
        if HAS_NORM:
            if i < AHEAD:
                norm = norms[i]
            else:
                norm = tl.load(norm_weight + i * BLOCK_K + k, mask=exists, other=0)
            squares += first_x * first_x
            first_x *= first_of(norm, PAIRS)
            if PAIRS:
                squares += second_x * second_x
                second_x *= second_of(norm)
        products = _add_products(products, first_x, second_x, w, PAIRS)
        if EPILOGUE == SILU_MUL:
            if i < AHEAD:
                u = ups[i]
            else:
                u = tl.load(tile + (N * K + i * BLOCK_K), mask=inside, other=0)
            products_up = _add_products(products_up, first_x, second_x, u, PAIRS)
    product = tl.sum(products, axis=1)
    up = product
    if EPILOGUE == SILU_MUL:
        up = tl.sum(products_up, axis=1)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / (K * (2 if PAIRS else 1)) + eps)
        product *= factor
        up *= factor
    if EPILOGUE == ADD:
        product += before.to(tl.float32)
    if EPILOGUE == SILU_MUL:
        product = product * tl.sigmoid(product) * up
    tl.store(out + n, product.to(out.dtype.element_ty), mask=n < N)


def as_words(tensor: torch.Tensor | None, pairs: bool) -> torch.Tensor | None:
    """`tensor`, or with `pairs` its pairs of bfloat16 as int32 along the last dimension.

    A GPU makes fp32 of one half of a word in one operation, but needs more for a value of its own.
    """
    return tensor if tensor is None or not pairs else tensor.view(torch.int32)


def choose_tiles(columns: int, inner: int, *, silu_mul: bool) -> Tiles:
    """Tiles for a product with [columns, inner], as measured on an H100 and an H200."""
    if inner >= 4096 and (silu_mul or columns > 4096):
        return Tiles(n=2 if silu_mul else 8, k=4096, num_warps=8)
    if columns <= 2048:
        # Few programs: each has all of its weights under way before it waits.
        return Tiles(n=4, k=1024, num_warps=4, ahead=max(1, min(4, inner // 1024)))
    if inner <= 1024 and not silu_mul and columns <= 8192:
        return Tiles(n=4, k=256, num_warps=1, ahead=max(1, inner // 256))
    return Tiles(n=4 if silu_mul else 8, k=1024, num_warps=4)


def single_token_linear(
    *,
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
    out: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """`norm(x) @ weight.T` of one row, then added to the residual, or gated.

    Args:
        x: [1, inner], float, contiguous.
        weight: [columns, inner], contiguous, dtype of `x`.
        norm_weight: [inner]: the weight of an RMS norm of `x` with `eps`; None for no norm.
        residual: [1, columns], contiguous: the product is added to it in place, and it is returned.
        silu_mul: `weight` is [2 * size, inner], gate and up, and `silu(gate) * up` returns.
        out: [1, columns] or with `silu_mul` [1, size], contiguous, to write into; None for a new one.
            Not with `residual`.
        tiles: how to cut the work up; None to choose.

    Returns:
        [1, columns], or with `silu_mul` [1, size]: fp32 sums rounded once to the dtype of `x`.
    """
    rows, inner = x.shape
    if rows != 1:
        raise ValueError(f"x: expected one row, got {rows}")
    columns = weight.shape[0] // 2 if silu_mul else weight.shape[0]
    if residual is not None:
        out = residual
    elif out is None:
        out = torch.empty((1, columns), dtype=x.dtype, device=x.device)
    if tiles is None:
        tiles = choose_tiles(columns, inner, silu_mul=silu_mul)
    dependent = supports_dependent_launch(x.device)
    pairs = x.dtype == torch.bfloat16 and inner % 2 == 0
    words = inner // 2 if pairs else inner
    block_k = min(tiles.k // 2 if pairs else tiles.k, triton.next_power_of_2(words))
    _matvec_kernel[(triton.cdiv(columns, tiles.n),)](
        x=as_words(x, pairs),
        weight=as_words(weight, pairs),
        norm_weight=as_words(norm_weight, pairs),
        residual=residual,
        out=out,
        eps=eps,
        N=columns,
        K=words,
        PAIRS=pairs,
        HAS_NORM=norm_weight is not None,
        EPILOGUE=SILU_MUL if silu_mul else ADD if residual is not None else PLAIN,
        DEPENDENT=dependent,
        AHEAD=min(tiles.ahead, triton.cdiv(words, block_k)),
        BLOCK_N=tiles.n,
        BLOCK_K=block_k,
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return out


def fused_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
) -> torch.Tensor:
    """`single_token_linear` in torch, in fp32; nothing in place."""
    wide = x.float()
    if norm_weight is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * norm_weight.float()
    product = wide @ weight.float().T
    if silu_mul:
        gate, up = product.chunk(2, dim=-1)
        product = torch.nn.functional.silu(gate) * up
    if residual is not None:
        product = product + residual.float()
    return product.to(x.dtype)
