"""Linear layers of a step with one token and a quantized weight, fused as `single_token_linear` is.

    out = epilogue(norm(x) @ dequantize(weight).T)

Weights stream through registers and are widened there. 8-bit numbers are converted one by one. 4-bit numbers
go in pairs: a shift, a mask and the exponent of 128 make two bfloat16 of a word, each 128 more than its
number; the surplus is taken away once a word, by the sum of the word's inputs.
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
from dodona.kernels.linear.quantized_weight import INT4_ZERO, QuantizedWeight, dequantize
from dodona.kernels.linear.round_activations import RoundedActivations
from dodona.kernels.linear.single_token_linear import (
    ADD,
    PLAIN,
    SILU_MUL,
    as_words,
    first_of,
    fused_linear_reference,
    second_of,
)


@dataclass(frozen=True, slots=True)
class QuantizedTiles:
    """How a product is cut up."""

    n: int
    """Output columns per program."""
    k: int
    """Inner elements per tile."""
    num_warps: int


@triton.jit
def _store(product, up, before, out, n, N: tl.constexpr, EPILOGUE: tl.constexpr):
    if EPILOGUE == ADD:
        product += before.to(tl.float32)
    if EPILOGUE == SILU_MUL:
        product = product * tl.sigmoid(product) * up
    tl.store(out + n, product.to(out.dtype.element_ty), mask=n < N)


@triton.jit
def _bytes_matvec_kernel(
    x,
    x_scales,
    data,
    scales,
    norm_weight,
    residual,
    out,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    X_GROUP: tl.constexpr,
    X_SCALED: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`GROUP`: 0, or inner elements per scale, and then all rows of a program have the same scales.
    `X_GROUP`: 0, or elements of `x` per scale."""
    if DEPENDENT:
        let_next_start()
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 1
    TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    first_row = tl.program_id(0) * BLOCK_N
    n = first_row + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    tile = data + n.to(tl.int64)[:, None] * K + k[None, :]
    column_exists = (n < N)[:, None]
    # The first tile is under way before the kernel waits for its inputs.
    inside = column_exists & (k < K)[None, :]
    next_w = tl.load(tile, mask=inside, other=0.0)
    if EPILOGUE == SILU_MUL:
        next_u = tl.load(tile + N * K, mask=inside, other=0.0)
    row_scale = tl.load(scales + n * GROUPS, mask=n < N, other=0.0).to(tl.float32)
    up_scale = row_scale
    if EPILOGUE == SILU_MUL:
        up_scale = tl.load(scales + (N + n) * GROUPS, mask=n < N, other=0.0).to(tl.float32)
    if DEPENDENT:
        wait_for_inputs()
    before = row_scale
    if EPILOGUE == ADD:
        before = tl.load(residual + n, mask=n < N, other=0.0)
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    products_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK_K + k
        exists = at < K
        w = next_w
        if EPILOGUE == SILU_MUL:
            u = next_u
        if i + 1 < TILES:
            inside = column_exists & (at + BLOCK_K < K)[None, :]
            next_w = tl.load(tile + (i + 1) * BLOCK_K, mask=inside, other=0.0)
            if EPILOGUE == SILU_MUL:
                next_u = tl.load(tile + (N * K + (i + 1) * BLOCK_K), mask=inside, other=0.0)
        value = tl.load(x + at, mask=exists, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += value * value
            value *= tl.load(norm_weight + at, mask=exists, other=0.0).to(tl.float32)
        if X_GROUP:
            value *= tl.load(x_scales + at // X_GROUP, mask=exists, other=0.0)
        up_value = value
        if GROUP:
            group = at // GROUP
            if EPILOGUE == SILU_MUL:
                up_scales = tl.load(scales + (N + first_row) * GROUPS + group, mask=exists, other=0.0)
                up_value = value * up_scales.to(tl.float32)
            value *= tl.load(scales + first_row * GROUPS + group, mask=exists, other=0.0).to(tl.float32)
        products += value[None, :] * w.to(tl.float32)
        if EPILOGUE == SILU_MUL:
            products_up += up_value[None, :] * u.to(tl.float32)
    product = tl.sum(products, axis=1)
    up = product
    if EPILOGUE == SILU_MUL:
        up = tl.sum(products_up, axis=1)
    if not GROUP:
        product *= row_scale
        up *= up_scale
    if X_SCALED and not X_GROUP:
        factor = tl.load(x_scales)
        product *= factor
        up *= factor
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        product *= factor
        up *= factor
    _store(product, up, before, out, n, N, EPILOGUE)


@triton.jit
def _word_products(words, evens, odds, total, scale, zero):
    """Products of a tile of words of eight 4-bit numbers: [BLOCK_N, words]."""
    found = words * 0.0
    for i in tl.static_range(4):
        pair = ((words >> (4 * i)) & 0x000F000F) | 0x43004300
        found += evens[i][None, :] * first_of(pair, True)
        found += odds[i][None, :] * second_of(pair)
    return scale * (found - (128.0 + zero) * total[None, :])


@triton.jit
def _nibbles_matvec_kernel(
    x,
    data,
    scales,
    zeros,
    norm_weight,
    residual,
    out,
    eps,
    N: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    ZERO: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """`PAIRS`: `x` and the norm's weight are pairs of bfloat16 in int32."""
    if DEPENDENT:
        let_next_start()
    TILES: tl.constexpr = (WORDS + BLOCK_WORDS - 1) // BLOCK_WORDS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_WORDS)
    column_exists = (n < N)[:, None]
    rows = n.to(tl.int64)[:, None]
    tile = data + rows * WORDS + k[None, :]
    row_groups = rows * GROUPS
    inside = column_exists & (k < WORDS)[None, :]
    next_w = tl.load(tile, mask=inside, other=0)
    if EPILOGUE == SILU_MUL:
        next_u = tl.load(tile + N * WORDS, mask=inside, other=0)
    if DEPENDENT:
        wait_for_inputs()
    before = tl.zeros((BLOCK_N,), tl.float32)
    if EPILOGUE == ADD:
        before = tl.load(residual + n, mask=n < N, other=0.0).to(tl.float32)
    products = tl.zeros((BLOCK_N, BLOCK_WORDS), tl.float32)
    products_up = tl.zeros((BLOCK_N, BLOCK_WORDS), tl.float32)
    squares = tl.zeros((BLOCK_WORDS,), tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK_WORDS + k
        exists = at < WORDS
        inside = column_exists & exists[None, :]
        w = next_w
        if EPILOGUE == SILU_MUL:
            u = next_u
        if i + 1 < TILES:
            later = column_exists & (at + BLOCK_WORDS < WORDS)[None, :]
            next_w = tl.load(tile + (i + 1) * BLOCK_WORDS, mask=later, other=0)
            if EPILOGUE == SILU_MUL:
                next_u = tl.load(tile + (N * WORDS + (i + 1) * BLOCK_WORDS), mask=later, other=0)
        evens = ()
        odds = ()
        total = tl.zeros((BLOCK_WORDS,), tl.float32)
        for j in tl.static_range(4):
            if PAIRS:
                pair = tl.load(x + at * 4 + j, mask=exists, other=0)
                even = first_of(pair, True)
                odd = second_of(pair)
            else:
                even = tl.load(x + at * 8 + 2 * j, mask=exists, other=0.0).to(tl.float32)
                odd = tl.load(x + at * 8 + 2 * j + 1, mask=exists, other=0.0).to(tl.float32)
            if HAS_NORM:
                squares += even * even + odd * odd
                if PAIRS:
                    norm = tl.load(norm_weight + at * 4 + j, mask=exists, other=0)
                    even *= first_of(norm, True)
                    odd *= second_of(norm)
                else:
                    even *= tl.load(norm_weight + at * 8 + 2 * j, mask=exists, other=0.0).to(tl.float32)
                    odd *= tl.load(norm_weight + at * 8 + 2 * j + 1, mask=exists, other=0.0).to(tl.float32)
            total += even + odd
            evens = evens + (even,)
            odds = odds + (odd,)
        group = row_groups + (at // GROUP_WORDS)[None, :]
        scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
        zero = ZERO
        if HAS_ZEROS:
            zero = tl.load(zeros + group, mask=inside, other=0).to(tl.float32)
        products += _word_products(w, evens, odds, total, scale, zero)
        if EPILOGUE == SILU_MUL:
            scale = tl.load(scales + (N * GROUPS + group), mask=inside, other=0.0).to(tl.float32)
            if HAS_ZEROS:
                zero = tl.load(zeros + (N * GROUPS + group), mask=inside, other=0).to(tl.float32)
            products_up += _word_products(u, evens, odds, total, scale, zero)
    product = tl.sum(products, axis=1)
    up = product
    if EPILOGUE == SILU_MUL:
        up = tl.sum(products_up, axis=1)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / (WORDS * 8) + eps)
        product *= factor
        up *= factor
    _store(product, up, before, out, n, N, EPILOGUE)


def supports_quantized_single_token(weight: QuantizedWeight) -> bool:
    """Whether `quantized_single_token_linear` serves a weight: not with zero points of 8-bit numbers, nor
    with scales of 8-bit groups that differ from row to row."""
    if weight.kind == "int4":
        return weight.size % 8 == 0
    return (
        weight.kind in ("int8", "fp8")
        and weight.zeros is None
        and (weight.group_size is None or weight.shared_rows % 4 == 0)
    )


def choose_quantized_tiles(weight: QuantizedWeight, *, silu_mul: bool) -> QuantizedTiles:
    """Tiles for a product with a weight, of half its rows with `silu_mul`; as measured on an H200."""
    if weight.kind == "int4":
        if weight.inner > 4096:
            return QuantizedTiles(n=4, k=2048, num_warps=2)
        return QuantizedTiles(n=4 if silu_mul else 8, k=4096, num_warps=4)
    if weight.inner > 4096 and weight.kind == "fp8":
        return QuantizedTiles(n=4, k=1024, num_warps=2)
    return QuantizedTiles(n=2 if weight.inner > 4096 else 4, k=4096, num_warps=8)


def quantized_single_token_linear(
    *,
    x: torch.Tensor | RoundedActivations,
    weight: QuantizedWeight,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
    out: torch.Tensor | None = None,
    tiles: QuantizedTiles | None = None,
) -> torch.Tensor:
    """`norm(x) @ dequantize(weight).T` of one row, then added to the residual, or gated.

    Args:
        x: [1, inner], float, contiguous; or rounded, for 8-bit weights, and then without `norm_weight`.
        weight: [columns, inner], as `supports_quantized_single_token` says.
        norm_weight: [inner]: the weight of an RMS norm of `x` with `eps`; None for no norm.
        residual: [1, columns], contiguous: the product is added to it in place, and it is returned.
        silu_mul: `weight` is [2 * size, inner], gate and up, and `silu(gate) * up` returns.
        out: [1, columns] or with `silu_mul` [1, size], contiguous, to write into; None for a new one.
            Not with `residual`.
        tiles: how to cut the work up; None to choose.

    Returns:
        [1, columns], or with `silu_mul` [1, size]: fp32 sums rounded once to the dtype of `x`.
    """
    rounded = x if isinstance(x, RoundedActivations) else None
    values = x.values if isinstance(x, RoundedActivations) else x
    rows, inner = values.shape
    if rows != 1:
        raise ValueError(f"x: expected one row, got {rows}")
    if not supports_quantized_single_token(weight) or (weight.kind == "int4" and rounded is not None):
        raise ValueError(f"weight: {weight.kind} in groups of {weight.size} is left to quantized_linear")
    columns = weight.rows // 2 if silu_mul else weight.rows
    if residual is not None:
        out = residual
    elif out is None:
        out = torch.empty((1, columns), dtype=values.dtype, device=values.device)
    if tiles is None:
        tiles = choose_quantized_tiles(weight, silu_mul=silu_mul)
    dependent = supports_dependent_launch(values.device)
    epilogue = SILU_MUL if silu_mul else ADD if residual is not None else PLAIN
    grid = (triton.cdiv(columns, tiles.n),)
    if weight.kind == "int4":
        pairs = values.dtype == torch.bfloat16
        words = inner // 8
        _nibbles_matvec_kernel[grid](
            x=as_words(values, pairs),
            data=weight.data,
            scales=weight.scales,
            zeros=weight.zeros,
            norm_weight=as_words(norm_weight, pairs),
            residual=residual,
            out=out,
            eps=eps,
            N=columns,
            WORDS=words,
            GROUP_WORDS=weight.size // 8,
            GROUPS=weight.scales.shape[1],
            HAS_ZEROS=weight.zeros is not None,
            ZERO=float(INT4_ZERO),
            PAIRS=pairs,
            HAS_NORM=norm_weight is not None,
            EPILOGUE=epilogue,
            DEPENDENT=dependent,
            BLOCK_N=tiles.n,
            BLOCK_WORDS=min(tiles.k // 8, triton.next_power_of_2(words)),
            num_warps=tiles.num_warps,
            **launch_options(dependent),
        )
        return out
    _bytes_matvec_kernel[grid](
        x=values,
        x_scales=None if rounded is None else rounded.scales,
        data=weight.data,
        scales=weight.scales,
        norm_weight=norm_weight,
        residual=residual,
        out=out,
        eps=eps,
        N=columns,
        K=inner,
        GROUP=weight.group_size or 0,
        X_GROUP=0 if rounded is None else rounded.group_size or 0,
        X_SCALED=rounded is not None,
        HAS_NORM=norm_weight is not None,
        EPILOGUE=epilogue,
        DEPENDENT=dependent,
        BLOCK_N=tiles.n,
        BLOCK_K=min(tiles.k, triton.next_power_of_2(inner)),
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return out


def quantized_fused_linear_reference(
    x: torch.Tensor,
    weight: QuantizedWeight,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
) -> torch.Tensor:
    """`quantized_single_token_linear` of an `x` that is not rounded, in torch and fp32; nothing in place."""
    return fused_linear_reference(x, dequantize(weight), norm_weight, eps, residual, silu_mul)
