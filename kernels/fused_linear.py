"""Linear layers of a step with one token, fused with what comes before and after them.

    out = epilogue(norm(x) @ weight.T)

Such a step is bound by reading weights and by the number of launches. Weights stream through registers into
plain multiply-adds in fp32; a kernel begins to fetch them while the one before it still runs, where the
GPU can do that (see `dependent_launch`). The RMS norm in front costs nothing: its factor is one number, so
the sum of squares is taken along while the product runs, and the product is scaled at the end. Behind it, the
residual is added in place, or SiLU of the gate multiplies the up projection, so that no intermediate leaves
the kernel.
"""

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

PLAIN, ADD, SILU_MUL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut up: output columns and inner elements per tile, and warps per program.

    `k` should be a multiple of 256 times `num_warps` for 2-byte elements: then all loads have one layout, and
    nothing passes through shared memory.
    """

    n: int
    k: int
    num_warps: int


@triton.jit
def _finish(product, up, at, inside, residual, out, EPILOGUE: tl.constexpr):
    """Store an fp32 tile; `at` are its places in `out` (and `residual`)."""
    if EPILOGUE == ADD:
        product += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if EPILOGUE == SILU_MUL:
        product = product * tl.sigmoid(product) * up
    tl.store(out + at, product.to(out.dtype.element_ty), mask=inside)


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
    HAS_NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    tile = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    inside = (n < N)[:, None] & (k < K)[None, :]
    w = tl.load(tile, mask=inside, other=0.0)
    u = w
    if EPILOGUE == SILU_MUL:
        u = tl.load(tile + N * K, mask=inside, other=0.0)
    if DEPENDENT:
        wait_for_inputs()
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        if start > 0:
            inside = (n < N)[:, None] & (start + k < K)[None, :]
            w = tl.load(tile + start, mask=inside, other=0.0)
            if EPILOGUE == SILU_MUL:
                u = tl.load(tile + N * K + start, mask=inside, other=0.0)
        a = tl.load(x + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += a * a
            a *= tl.load(norm_weight + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        products += a[None, :] * w.to(tl.float32)
        if EPILOGUE == SILU_MUL:
            ups += a[None, :] * u.to(tl.float32)
    product = tl.sum(products, axis=1)
    up = product
    if EPILOGUE == SILU_MUL:
        up = tl.sum(ups, axis=1)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        product *= factor
        up *= factor
    _finish(product, up, n, n < N, residual, out, EPILOGUE)


def choose_tiles(columns: int, inner: int, *, silu_mul: bool) -> Tiles:
    """Tiles for a product with [columns, inner], as measured on an H200."""
    if inner >= 4096 and (silu_mul or columns > 4096):
        return Tiles(n=2 if silu_mul else 8, k=4096, num_warps=8)
    if columns <= 2048:
        return Tiles(n=4, k=4096, num_warps=8)
    return Tiles(n=4 if silu_mul else 8, k=1024, num_warps=4)


def fused_linear(
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
        residual: [1, columns], contiguous: the product is added to it in place, and it is what returns.
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
    _matvec_kernel[(triton.cdiv(columns, tiles.n),)](
        x=x,
        weight=weight,
        norm_weight=norm_weight,
        residual=residual,
        out=out,
        eps=eps,
        N=columns,
        K=inner,
        HAS_NORM=norm_weight is not None,
        EPILOGUE=SILU_MUL if silu_mul else ADD if residual is not None else PLAIN,
        DEPENDENT=dependent,
        BLOCK_N=tiles.n,
        BLOCK_K=min(tiles.k, triton.next_power_of_2(inner)),
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
    """`fused_linear` in torch, in fp32; nothing in place."""
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
