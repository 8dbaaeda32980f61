"""Linear layers of a step with one token and a quantized weight, fused as `single_token_linear` is.

    out = epilogue(norm(x) @ dequantize(weight).T)

Weights stream through registers and are widened there. E4M3 numbers are converted one by one. int8 numbers
become the lowest bits of fp32 numbers beside 2**23. 4-bit numbers go in pairs: a shift, a mask and the
exponent of 128 make two bfloat16 of a word, each 128 more than its number; the surplus is taken away once a
run of words, by the sum of its inputs.
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
def _e4m3_matvec_kernel(
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
def _inputs_of_words(
    x, norm_weight, at, exists, squares, PER_WORD: tl.constexpr, PAIRS: tl.constexpr, HAS_NORM: tl.constexpr
):
    """The inputs of a tile of words, in fp32 and times the norm's weight: those at even and at odd places of
    each word, as two tuples; the sum of each word's; and `squares`, with theirs added."""
    evens = ()
    odds = ()
    total = squares * 0.0
    for j in tl.static_range(PER_WORD // 2):
        if PAIRS:
            pair = tl.load(x + at * (PER_WORD // 2) + j, mask=exists, other=0)
            even = first_of(pair, True)
            odd = second_of(pair)
        else:
            even = tl.load(x + at * PER_WORD + 2 * j, mask=exists, other=0.0).to(tl.float32)
            odd = tl.load(x + at * PER_WORD + 2 * j + 1, mask=exists, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += even * even + odd * odd
            if PAIRS:
                norm = tl.load(norm_weight + at * (PER_WORD // 2) + j, mask=exists, other=0)
                even *= first_of(norm, True)
                odd *= second_of(norm)
            else:
                even *= tl.load(norm_weight + at * PER_WORD + 2 * j, mask=exists, other=0.0).to(tl.float32)
                place = at * PER_WORD + 2 * j + 1
                odd *= tl.load(norm_weight + place, mask=exists, other=0.0).to(tl.float32)
        total += even + odd
        evens = evens + (even,)
        odds = odds + (odd,)
    return evens, odds, total, squares


@triton.jit
def _word_products(words, evens, odds, NIBBLES: tl.constexpr):
    """Sums of products over the last dimension, [BLOCK_N, runs], of words [BLOCK_N, runs, RUN]. 4-bit numbers
    are 128 too large."""
    found = words * 0.0
    if NIBBLES:
        for i in tl.static_range(4):
            pair = ((words >> (4 * i)) & 0x000F000F) | 0x43004300
            found += evens[i][None, :, :] * first_of(pair, True)
            found += odds[i][None, :, :] * second_of(pair)
    else:
        # A byte below the exponent of 2**23 is a number beside it; with the sign turned over, 128 beside.
        flipped = words ^ -2139062144  # 0x80808080
        for i in tl.static_range(4):
            number = (((flipped >> (8 * i)) & 0xFF) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
            if i % 2 == 0:
                found += evens[i // 2][None, :, :] * number
            else:
                found += odds[i // 2][None, :, :] * number
    return tl.sum(found, axis=2)


@triton.jit
def _words_matvec_kernel(
    x,
    data,
    scales,
    zeros,
    norm_weight,
    x_scales,
    residual,
    out,
    eps,
    N: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    GROUPS: tl.constexpr,
    NIBBLES: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    ZERO: tl.constexpr,
    PAIRS: tl.constexpr,
    X_SCALED: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """Words of eight 4-bit numbers, or of four 8-bit ones. A tile is [BLOCK_N, RUNS, RUN]; a run of words is
    in one group. `PAIRS`: `x` and the norm's weight are pairs of bfloat16 in int32."""
    if DEPENDENT:
        let_next_start()
    BLOCK_WORDS: tl.constexpr = RUNS * RUN
    TILES: tl.constexpr = (WORDS + BLOCK_WORDS - 1) // BLOCK_WORDS
    PER_WORD: tl.constexpr = 8 if NIBBLES else 4
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    run = tl.arange(0, RUNS) * RUN
    k = run[:, None] + tl.arange(0, RUN)[None, :]
    column_exists = (n < N)[:, None, None]
    rows = n.to(tl.int64)
    tile = data + rows[:, None, None] * WORDS + k[None, :, :]
    row_groups = rows[:, None] * GROUPS
    inside = column_exists & (k < WORDS)[None, :, :]
    next_w = tl.load(tile, mask=inside, other=0)
    if EPILOGUE == SILU_MUL:
        next_u = tl.load(tile + N * WORDS, mask=inside, other=0)
    if DEPENDENT:
        wait_for_inputs()
    before = tl.zeros((BLOCK_N,), tl.float32)
    if EPILOGUE == ADD:
        before = tl.load(residual + n, mask=n < N, other=0.0).to(tl.float32)
    products = tl.zeros((BLOCK_N, RUNS), tl.float32)
    products_up = tl.zeros((BLOCK_N, RUNS), tl.float32)
    squares = tl.zeros((RUNS, RUN), tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK_WORDS + k
        w = next_w
        if EPILOGUE == SILU_MUL:
            u = next_u
        if i + 1 < TILES:
            later = column_exists & (at + BLOCK_WORDS < WORDS)[None, :, :]
            next_w = tl.load(tile + (i + 1) * BLOCK_WORDS, mask=later, other=0)
            if EPILOGUE == SILU_MUL:
                next_u = tl.load(tile + (N * WORDS + (i + 1) * BLOCK_WORDS), mask=later, other=0)
        evens, odds, total, squares = _inputs_of_words(
            x, norm_weight, at, at < WORDS, squares, PER_WORD, PAIRS, HAS_NORM
        )
        total = tl.sum(total, axis=1)[None, :]
        group = row_groups + ((i * BLOCK_WORDS + run) // GROUP_WORDS)[None, :]
        exists = (n < N)[:, None] & (i * BLOCK_WORDS + run < WORDS)[None, :]
        part = _word_products(w, evens, odds, NIBBLES)
        if NIBBLES:
            zero = ZERO
            if HAS_ZEROS:
                zero = tl.load(zeros + group, mask=exists, other=0).to(tl.float32)
            part -= (128.0 + zero) * total
        if GROUPS > 1:
            part *= tl.load(scales + group, mask=exists, other=0.0).to(tl.float32)
        products += part
        if EPILOGUE == SILU_MUL:
            part = _word_products(u, evens, odds, NIBBLES)
            group += N * GROUPS
            if NIBBLES:
                zero = ZERO
                if HAS_ZEROS:
                    zero = tl.load(zeros + group, mask=exists, other=0).to(tl.float32)
                part -= (128.0 + zero) * total
            if GROUPS > 1:
                part *= tl.load(scales + group, mask=exists, other=0.0).to(tl.float32)
            products_up += part
    product = tl.sum(products, axis=1)
    up = product
    if EPILOGUE == SILU_MUL:
        up = tl.sum(products_up, axis=1)
    if GROUPS == 1:
        product *= tl.load(scales + n, mask=n < N, other=0.0).to(tl.float32)
        if EPILOGUE == SILU_MUL:
            up *= tl.load(scales + N + n, mask=n < N, other=0.0).to(tl.float32)
    if X_SCALED:
        factor = tl.load(x_scales)
        product *= factor
        up *= factor
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / (WORDS * PER_WORD) + eps)
        product *= factor
        up *= factor
    _store(product, up, before, out, n, N, EPILOGUE)


def supports_quantized_single_token(weight: QuantizedWeight) -> bool:
    """Whether `quantized_single_token_linear` serves a weight.

    Not with zero points of 8-bit numbers, nor with groups of int8, nor with E4M3 groups whose scales differ
    from row to row.
    """
    if weight.kind == "int4":
        return weight.size % 8 == 0
    if weight.kind == "int8":
        return weight.zeros is None and weight.group_size is None and weight.inner % 4 == 0
    return weight.kind == "fp8" and (weight.group_size is None or weight.shared_rows % 4 == 0)


def choose_quantized_tiles(weight: QuantizedWeight, *, silu_mul: bool) -> QuantizedTiles:
    """Tiles for a product with a weight, of half its rows with `silu_mul`; as measured on an H200."""
    if weight.kind == "int4":
        return QuantizedTiles(n=4 if silu_mul else 8, k=4096, num_warps=4)
    if weight.kind == "int8":
        return QuantizedTiles(n=2 if silu_mul else 4, k=4096, num_warps=8)
    if weight.inner > 4096:
        return QuantizedTiles(n=4, k=1024, num_warps=2)
    return QuantizedTiles(n=4, k=4096, num_warps=8)


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
    grouped = rounded is not None and rounded.group_size is not None
    if not supports_quantized_single_token(weight) or (weight.kind != "fp8" and grouped):
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
    if weight.kind != "fp8":
        per_word = 8 if weight.kind == "int4" else 4
        pairs, words = values.dtype == torch.bfloat16, inner // per_word
        group_words = weight.size // per_word
        run = 4 if group_words % 4 == 0 else 2 if group_words % 2 == 0 else 1
        _words_matvec_kernel[grid](
            x=as_words(values, pairs),
            data=weight.data.view(torch.int32),
            scales=weight.scales,
            zeros=weight.zeros,
            norm_weight=as_words(norm_weight, pairs),
            x_scales=None if rounded is None else rounded.scales,
            residual=residual,
            out=out,
            eps=eps,
            N=columns,
            WORDS=words,
            GROUP_WORDS=group_words,
            GROUPS=weight.scales.shape[1],
            NIBBLES=weight.kind == "int4",
            HAS_ZEROS=weight.zeros is not None,
            ZERO=float(INT4_ZERO),
            PAIRS=pairs,
            X_SCALED=rounded is not None,
            HAS_NORM=norm_weight is not None,
            EPILOGUE=epilogue,
            DEPENDENT=dependent,
            BLOCK_N=tiles.n,
            RUNS=max(1, min(tiles.k // per_word, triton.next_power_of_2(words)) // run),
            RUN=run,
            num_warps=tiles.num_warps,
            **launch_options(dependent),
        )
        return out
    _e4m3_matvec_kernel[grid](
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
