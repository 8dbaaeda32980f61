"""Linear layers of up to 16 tokens, fused with what comes before and after them.

As `single_token_linear`, for more rows:

    out = epilogue(norm(x) @ weight.T)

Rows of the weight are the rows of the matrix instruction, tokens its columns, so that eight tokens cost
hardly more than one. A program has 16 or 32 columns of the result, and its warps share the inner dimension.
Each thread reads its operands from global memory straight into the registers where the instruction wants
them, 16 bytes at a time: that permutes the inner dimension alike in both operands, which changes no sum. So
weights can be under way before the kernel waits for its inputs (see `dependent_launch`), and no tile passes
through shared memory; the warps meet once, to add up.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start_gluon,
    supports_dependent_launch,
    wait_for_inputs_gluon,
)
from dodona.kernels.devices import is_hopper
from dodona.kernels.l1_cache import prefer_shared_memory
from dodona.kernels.linear.single_token_linear import ADD, PLAIN, SILU_MUL

INNER = gl.constexpr(64)
"""Inner elements of a warp's tile."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut up."""

    columns: int
    """Of a program: 16, the rows of the matrix instruction, or 32."""
    num_warps: int
    """They share the inner dimension; each has `INNER` elements of a tile."""
    ahead: int
    """Tiles under way at a time, and before the kernel waits for its inputs."""
    eviction_policy: str = ""
    """Of the weights in the L1 cache, where a multiprocessor's programs find `x` again."""


@prefer_shared_memory(percent=7)  # of H100 and H200: 16 KiB
@gluon.jit(do_not_specialize=["tokens"])
def _small_batch_linear_kernel(
    x,
    weight,
    norm_weight,
    residual,
    out,
    eps,
    tokens,
    N: gl.constexpr,
    K: gl.constexpr,
    HAS_NORM: gl.constexpr,
    EPILOGUE: gl.constexpr,
    DEPENDENT: gl.constexpr,
    COLUMNS: gl.constexpr,
    TOKENS: gl.constexpr,
    AHEAD: gl.constexpr,
    EVICTION: gl.constexpr,
):
    if DEPENDENT:
        let_next_start_gluon()
    WARPS: gl.constexpr = gl.num_warps()
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, MMA, 8)
    X_LAYOUT: gl.constexpr = gl.DotOperandLayout(1, MMA, 8)
    # Dimensions of a tile: warp, then the product's own two. All warps have the same columns and tokens.
    TILE: gl.constexpr = WARPS * INNER
    TILES: gl.constexpr = (K + TILE - 1) // TILE
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, W_LAYOUT)))[:, None, None]
    inner = gl.arange(0, INNER, gl.SliceLayout(0, gl.SliceLayout(1, W_LAYOUT)))[None, None, :]
    w_inner = warp * INNER + inner
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(2, W_LAYOUT)))[None, :, None]
    column += gl.program_id(0) * COLUMNS
    w_source = weight + column.to(gl.int64) * K + w_inner
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, X_LAYOUT)))[:, None, None]
    inner = gl.arange(0, INNER, gl.SliceLayout(0, gl.SliceLayout(2, X_LAYOUT)))[None, :, None]
    x_inner = warp * INNER + inner
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, gl.SliceLayout(1, X_LAYOUT)))[None, None, :]
    x_source = x + token * K + x_inner
    norm_source = norm_weight + x_inner + token * 0 if HAS_NORM else x_source

    weights = ()
    ups = ()
    norms = ()
    for i in gl.static_range(AHEAD):
        inside = (column < N) & (i * TILE + w_inner < K)
        weights = weights + (gl.load(w_source + i * TILE, mask=inside, other=0.0, eviction_policy=EVICTION),)
        if EPILOGUE == SILU_MUL:
            up = gl.load(w_source + (N * K + i * TILE), mask=inside, other=0.0, eviction_policy=EVICTION)
            ups = ups + (up,)
        if HAS_NORM:
            norms = norms + (gl.load(norm_source + i * TILE, mask=i * TILE + x_inner < K, other=0.0),)
    if DEPENDENT:
        wait_for_inputs_gluon()
    # All that could not be read before is asked for at once.
    xs = ()
    for i in gl.static_range(AHEAD):
        inside = (token < tokens) & (i * TILE + x_inner < K)
        xs = xs + (gl.load(x_source + i * TILE, mask=inside, other=0.0),)
    OUT: gl.constexpr = gl.SliceLayout(0, MMA)
    out_column = gl.program_id(0) * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(1, OUT))[:, None]
    out_token = gl.arange(0, TOKENS, gl.SliceLayout(0, OUT))[None, :]
    target = out_token * N + out_column
    exists = (out_column < N) & (out_token < tokens)
    if EPILOGUE == ADD:
        before = gl.load(residual + target, mask=exists, other=0.0)

    products = gl.zeros([WARPS, COLUMNS, TOKENS], gl.float32, MMA)
    products_up = gl.zeros([WARPS, COLUMNS, TOKENS], gl.float32, MMA)
    squares = gl.zeros([WARPS, INNER, TOKENS], gl.float32, X_LAYOUT)
    for i in gl.static_range(TILES):
        if i + AHEAD < TILES:
            w_inside = (column < N) & ((i + AHEAD) * TILE + w_inner < K)
            x_inside = (i + AHEAD) * TILE + x_inner < K
            weights = weights + (
                gl.load(w_source + (i + AHEAD) * TILE, mask=w_inside, other=0.0, eviction_policy=EVICTION),
            )
            if EPILOGUE == SILU_MUL:
                up_source = w_source + (N * K + (i + AHEAD) * TILE)
                ups = ups + (gl.load(up_source, mask=w_inside, other=0.0, eviction_policy=EVICTION),)
            if HAS_NORM:
                norms = norms + (gl.load(norm_source + (i + AHEAD) * TILE, mask=x_inside, other=0.0),)
            x_inside = (token < tokens) & x_inside
            xs = xs + (gl.load(x_source + (i + AHEAD) * TILE, mask=x_inside, other=0.0),)
        values = xs[i]
        if HAS_NORM:
            wide = values.to(gl.float32)
            squares += wide * wide
            values = (wide * norms[i].to(gl.float32)).to(values.dtype)
        products = mma_v2(weights[i], values, products)
        if EPILOGUE == SILU_MUL:
            products_up = mma_v2(ups[i], values, products_up)
    product = gl.sum(products, 0)
    up = product
    if EPILOGUE == SILU_MUL:
        up = gl.sum(products_up, 0)
    if HAS_NORM:
        mean = gl.convert_layout(gl.sum(gl.sum(squares, 1), 0), gl.SliceLayout(0, OUT)) / K
        factor = gl.rsqrt(mean + eps)[None, :]
        product *= factor
        up *= factor
    if EPILOGUE == ADD:
        product += before.to(gl.float32)
    if EPILOGUE == SILU_MUL:
        product = product / (1.0 + gl.exp(-product)) * up
    gl.store(out + target, product.to(out.dtype.element_ty), mask=exists)


def max_small_batch_tokens(inner: int) -> int:
    """The most tokens for which `small_batch_linear` is faster than a plain product and kernels around it, in
    a model of hidden size `inner`; as measured on an H100."""
    return 16 if inner < 2048 else 8


def supports_small_batch_linear(*, device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> bool:
    """Whether `small_batch_linear` serves products of such inner sizes there. Not in float16: `x` times the
    norm's weight is computed before the division by the size of `x`, and float16 may not hold it."""
    return is_hopper(device) and dtype == torch.bfloat16 and not any(size % 8 for size in sizes)


def small_batch_linear(
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
    """`norm(x) @ weight.T`, then added to the residual, or gated; where `supports_small_batch_linear`.

    Args:
        x: [tokens, inner], bfloat16, contiguous; at most 16 tokens, `inner` a multiple of 8.
        weight: [columns, inner], contiguous, dtype of `x`.
        norm_weight: [inner]: the weight of an RMS norm of `x` with `eps`; None for no norm.
        residual: [tokens, columns], contiguous: the product is added to it in place, and it is returned.
        silu_mul: `weight` is [2 * size, inner], gate and up, and `silu(gate) * up` returns.
        out: [tokens, columns] or with `silu_mul` [tokens, size], contiguous, to write into; None for a new
            one. Not with `residual`.
        tiles: how to cut the work up; None to choose.

    Returns:
        [tokens, columns], or with `silu_mul` [tokens, size]: fp32 sums of products of bfloat16 (`x` times the
        norm's weight is rounded once), rounded to the dtype of `x`.
    """
    tokens, inner = x.shape
    if tokens > 16:
        raise ValueError(f"x: expected at most 16 rows, got {tokens}")
    if inner % 8:
        raise ValueError(f"x: expected rows of a multiple of 8 elements, got {inner}")
    columns = weight.shape[0] // 2 if silu_mul else weight.shape[0]
    if residual is not None:
        out = residual
    elif out is None:
        out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    if tiles is None:
        has_norm = norm_weight is not None
        tiles = choose_tiles(columns, inner, tokens=tokens, has_norm=has_norm, silu_mul=silu_mul)
    dependent = supports_dependent_launch(x.device)
    _small_batch_linear_kernel[(triton.cdiv(columns, tiles.columns),)](
        x=x,
        weight=weight,
        norm_weight=norm_weight,
        residual=residual,
        out=out,
        eps=eps,
        tokens=tokens,
        N=columns,
        K=inner,
        HAS_NORM=norm_weight is not None,
        EPILOGUE=SILU_MUL if silu_mul else ADD if residual is not None else PLAIN,
        DEPENDENT=dependent,
        COLUMNS=tiles.columns,
        TOKENS=8 if tokens <= 8 else 16,
        AHEAD=min(tiles.ahead, triton.cdiv(inner, tiles.num_warps * INNER.value)),
        EVICTION=tiles.eviction_policy,
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return out


def choose_tiles(columns: int, inner: int, *, tokens: int, has_norm: bool, silu_mul: bool) -> Tiles:
    """Tiles of a product with [columns, inner], with as much under way as leaves registers for the rest; as
    measured on an H100, and without a norm or with up to 8 long rows on an H200."""
    if silu_mul:
        return Tiles(columns=16, num_warps=4, ahead=4)
    eviction_policy = "evict_first" if tokens <= 8 and inner >= 4096 else ""
    if has_norm:
        ahead = 6 if inner <= 2048 else 4
        return Tiles(columns=16, num_warps=4, ahead=ahead, eviction_policy=eviction_policy)
    if tokens <= 8 and inner > 4096 and columns >= 4096:
        # A multiprocessor has one of these programs at a time, and reads `x` half as often.
        return Tiles(columns=32, num_warps=8, ahead=4, eviction_policy=eviction_policy)
    ahead = 12 if inner <= 4096 else 8
    return Tiles(columns=16, num_warps=4, ahead=ahead, eviction_policy=eviction_policy)
