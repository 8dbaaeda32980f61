"""Linear layers of up to 16 tokens with a quantized weight, fused as `small_batch_linear` is.

    out = epilogue(norm(x) @ dequantize(weight).T)

As there, rows of the weight are the rows of the matrix instruction and tokens its columns, and each thread
reads 16 bytes at a time straight into the registers where the instruction wants them: 32 4-bit numbers, or 16
of 8 bits. That permutes the inner dimension, alike in both operands. The numbers become the instruction's
type there:

- E4M3 by the GPU's conversion;
- 4 bits in pairs: a shift, a mask and the exponent of 128 make two bfloat16, each 128 more than its number;
- int8 as two such numbers, of its upper and its lower four bits.

What is too much is taken away by the sum of the inputs, which is a product with ones. Scales of groups come
in once a tile, those of rows at the end.
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
from dodona.kernels.l1_cache import prefer_l1_cache
from dodona.kernels.linear.quantized_weight import INT4_ZERO, QuantizedWeight
from dodona.kernels.linear.round_activations import RoundedActivations
from dodona.kernels.linear.single_token_linear import ADD, PLAIN, SILU_MUL

COLUMNS = gl.constexpr(16)
"""Columns of a program: rows of the matrix instruction."""

INT4, INT8, FP8 = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)


@dataclass(frozen=True, slots=True)
class SmallBatchTiles:
    """How the kernel is run."""

    num_warps: int
    """4 or 8; they share the inner dimension."""
    ahead: int
    """Tiles of the weight under way at a time, and before the kernel waits for its inputs."""
    x_ahead: int = 2
    """Tiles of `x` under way at a time."""


@gluon.jit
def _pairs(words, shift):
    """Two bfloat16 of each two neighbours in the last dimension, which hold one word: 128 and the 4-bit
    numbers at `shift` bits of its halves."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 t; shr.u32 t, $1, $3; lop3.b32 $0, t, 0x000F000F, 0x43004300, 0xEA; }",
        "=r,r,r,r,r",
        [words, shift],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def _without_signs(words):
    """The bytes of each word in the order 0, 2, 1, 3, as unsigned numbers: 128 more than the signed ones."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 t; xor.b32 t, $1, 0x80808080; prmt.b32 $0, t, t, 0x3120; }",
        "=r,r",
        [words],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _load_tile(data, row, row_exists, at, INNER_BYTES: gl.constexpr, FORMAT: gl.constexpr):
    """A tile of a weight as it is stored; `at`: [.., 1, lane, unit], the place in its row."""
    inside = row_exists & (at < INNER_BYTES)
    if FORMAT == FP8:
        tile = gl.load(data + row + at, mask=inside, other=0.0)
    else:
        tile = gl.load(data + row + at, mask=inside, other=0)
    return tile


@gluon.jit
def _operand(
    tile, shift, W_LAYOUT: gl.constexpr, HALF: gl.constexpr, WARPS: gl.constexpr, FORMAT: gl.constexpr
):
    """The instruction's operand [WARPS, COLUMNS, inner] of a tile."""
    if FORMAT == FP8:
        wide = gl.reshape(tile, [WARPS, COLUMNS, 4, 2, 8])
        wide = gl.reshape(gl.permute(wide, [0, 1, 3, 2, 4]), [WARPS, COLUMNS, 64])
        wide = wide.to(gl.float16)
        if not HALF:
            wide = wide.to(gl.bfloat16)
    elif FORMAT == INT4:
        wide = _pairs(tile[:, :, :, :, None], shift)
        wide = gl.reshape(gl.permute(wide, [0, 1, 3, 2, 4]), [WARPS, COLUMNS, 128])
    else:
        wide = _pairs(tile[:, :, :, :, None], shift)
        wide = gl.reshape(wide, [WARPS, COLUMNS, 4, 2, 8])
        wide = gl.reshape(gl.permute(wide, [0, 1, 3, 2, 4]), [WARPS, COLUMNS, 64])
    return gl.convert_layout(wide, W_LAYOUT)


@prefer_l1_cache
@gluon.jit(do_not_specialize=["tokens"])
def _quantized_small_batch_linear_kernel(
    x,
    x_scales,
    data,
    scales,
    zeros,
    norm_weight,
    residual,
    out,
    eps,
    tokens,
    N: gl.constexpr,
    K: gl.constexpr,
    FORMAT: gl.constexpr,
    GROUP: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    ZERO: gl.constexpr,
    X_SCALED: gl.constexpr,
    X_GROUPS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    EPILOGUE: gl.constexpr,
    DEPENDENT: gl.constexpr,
    TOKENS: gl.constexpr,
    AHEAD: gl.constexpr,
    X_AHEAD: gl.constexpr,
):
    """`GROUP`: 0, or inner elements per scale, a multiple of a warp's tile."""
    if DEPENDENT:
        let_next_start_gluon()
    WARPS: gl.constexpr = gl.num_warps()
    # Inner elements of a warp's tile; units (words or bytes) that a thread reads of a row; those of a row.
    INNER: gl.constexpr = 128 if FORMAT == INT4 else 64
    UNITS: gl.constexpr = 16 if FORMAT == FP8 else 4
    ROW_UNITS: gl.constexpr = K if FORMAT == FP8 else K // 4 if FORMAT == INT8 else K // 8
    PARTS: gl.constexpr = 8 if FORMAT == INT4 else 4
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, MMA, 8)
    X_LAYOUT: gl.constexpr = gl.DotOperandLayout(1, MMA, 8)
    if WARPS == 8:
        WARP_BASES: gl.constexpr = [[1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]]
        WIDE_WARP_BASES: gl.constexpr = [[1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [4, 0, 0, 0, 0]]
    else:
        WARP_BASES: gl.constexpr = [[1, 0, 0, 0], [2, 0, 0, 0]]
        WIDE_WARP_BASES: gl.constexpr = [[1, 0, 0, 0, 0], [2, 0, 0, 0, 0]]
    if FORMAT == FP8:
        TILE_LAYOUT: gl.constexpr = gl.DistributedLinearLayout(
            [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 4], [0, 0, 0, 8], [0, 8, 0, 0]],
            [[0, 0, 1, 0], [0, 0, 2, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 4, 0, 0]],
            WARP_BASES,
            [],
            [WARPS, 16, 4, 16],
        )
        shift = 0
    elif FORMAT == INT4:
        WIDE_LAYOUT: gl.constexpr = gl.DistributedLinearLayout(
            [
                [0, 0, 0, 0, 1],
                [0, 0, 0, 0, 2],
                [0, 0, 0, 0, 4],
                [0, 0, 0, 1, 0],
                [0, 0, 0, 2, 0],
                [0, 8, 0, 0, 0],
            ],
            [[0, 0, 1, 0, 0], [0, 0, 2, 0, 0], [0, 1, 0, 0, 0], [0, 2, 0, 0, 0], [0, 4, 0, 0, 0]],
            WIDE_WARP_BASES,
            [],
            [WARPS, 16, 4, 4, 8],
        )
        TILE_LAYOUT: gl.constexpr = gl.SliceLayout(4, WIDE_LAYOUT)
    else:
        WIDE_LAYOUT: gl.constexpr = gl.DistributedLinearLayout(
            [[0, 0, 0, 0, 1], [0, 0, 0, 0, 2], [0, 0, 0, 1, 0], [0, 0, 0, 2, 0], [0, 8, 0, 0, 0]],
            [[0, 0, 1, 0, 0], [0, 0, 2, 0, 0], [0, 1, 0, 0, 0], [0, 2, 0, 0, 0], [0, 4, 0, 0, 0]],
            WIDE_WARP_BASES,
            [],
            [WARPS, 16, 4, 4, 4],
        )
        TILE_LAYOUT: gl.constexpr = gl.SliceLayout(4, WIDE_LAYOUT)
    if FORMAT != FP8:
        PART: gl.constexpr = gl.SliceLayout(
            0, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, WIDE_LAYOUT)))
        )
        part = gl.arange(0, PARTS, PART)[None, None, None, None, :]
        shift = (part // 2) * (4 if FORMAT == INT4 else 8)
    TILE: gl.constexpr = WARPS * INNER
    TILES: gl.constexpr = (K + TILE - 1) // TILE
    TILE_UNITS: gl.constexpr = WARPS * 4 * UNITS
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, TILE_LAYOUT))))
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, TILE_LAYOUT))))
    lane = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, TILE_LAYOUT))))
    unit = gl.arange(0, UNITS, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, TILE_LAYOUT))))
    at = (warp[:, None, None, None] * (4 * UNITS) + lane[None, None, :, None] * UNITS) + unit[
        None, None, None, :
    ]
    column = column[None, :, None, None] + gl.program_id(0) * COLUMNS
    row_exists = column < N
    row = column.to(gl.int64) * ROW_UNITS

    # The inner elements of the operands' places.
    x_warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, X_LAYOUT)))[:, None, None]
    place = gl.arange(0, INNER, gl.SliceLayout(0, gl.SliceLayout(2, X_LAYOUT)))[None, :, None]
    x_inner = x_warp * INNER + ((place // 8) % 4) * (INNER // 4) + (place // 32) * 8 + place % 8
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, gl.SliceLayout(1, X_LAYOUT)))[None, None, :]
    x_source = x + token * K + x_inner
    norm_source = norm_weight + x_inner + token * 0 if HAS_NORM else x_source

    # Scales, by the warps and columns of the result.
    s_warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, MMA)))[:, None, None]
    s_column = gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(2, MMA)))[None, :, None]
    s_column += gl.program_id(0) * COLUMNS
    s_token = gl.arange(0, TOKENS, gl.SliceLayout(0, gl.SliceLayout(1, MMA)))[None, None, :]
    GROUPS: gl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 1
    STEP: gl.constexpr = GROUP if GROUP else K

    weights = ()
    ups = ()
    norms = ()
    for i in gl.static_range(AHEAD):
        weights = weights + (_load_tile(data, row, row_exists, at + i * TILE_UNITS, ROW_UNITS, FORMAT),)
        if EPILOGUE == SILU_MUL:
            ups = ups + (
                _load_tile(data + N * ROW_UNITS, row, row_exists, at + i * TILE_UNITS, ROW_UNITS, FORMAT),
            )
    if HAS_NORM:
        for i in gl.static_range(X_AHEAD):
            norms = norms + (gl.load(norm_source + i * TILE, mask=i * TILE + x_inner < K, other=0.0),)
    if DEPENDENT:
        wait_for_inputs_gluon()
    xs = ()
    for i in gl.static_range(X_AHEAD):
        inside = (token < tokens) & (i * TILE + x_inner < K)
        xs = xs + (gl.load(x_source + i * TILE, mask=inside, other=0.0),)
    OUT: gl.constexpr = gl.SliceLayout(0, MMA)
    out_column = gl.program_id(0) * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(1, OUT))[:, None]
    out_token = gl.arange(0, TOKENS, gl.SliceLayout(0, OUT))[None, :]
    target = out_token * N + out_column
    exists = (out_column < N) & (out_token < tokens)
    if EPILOGUE == ADD:
        before = gl.load(residual + target, mask=exists, other=0.0)

    HALF: gl.constexpr = FORMAT == FP8 and X_SCALED
    nothing = gl.zeros([WARPS, COLUMNS, TOKENS], gl.float32, MMA)
    products = nothing
    products_up = nothing
    uppers = nothing
    uppers_up = nothing
    sums = nothing
    squares = gl.zeros([WARPS, INNER, TOKENS], gl.float32, X_LAYOUT)
    if FORMAT != FP8:
        ones = gl.full([WARPS, COLUMNS, INNER], 1.0, gl.bfloat16, W_LAYOUT)
    for i in gl.static_range(TILES):
        if i + AHEAD < TILES:
            later = at + (i + AHEAD) * TILE_UNITS
            weights = weights + (_load_tile(data, row, row_exists, later, ROW_UNITS, FORMAT),)
            if EPILOGUE == SILU_MUL:
                ups = ups + (_load_tile(data + N * ROW_UNITS, row, row_exists, later, ROW_UNITS, FORMAT),)
        if i + X_AHEAD < TILES:
            x_inside = (i + X_AHEAD) * TILE + x_inner < K
            if HAS_NORM:
                norms = norms + (gl.load(norm_source + (i + X_AHEAD) * TILE, mask=x_inside, other=0.0),)
            x_inside = (token < tokens) & x_inside
            xs = xs + (gl.load(x_source + (i + X_AHEAD) * TILE, mask=x_inside, other=0.0),)
        values = xs[i]
        if HAS_NORM:
            wide = values.to(gl.float32)
            squares += wide * wide
            values = (wide * norms[i].to(gl.float32)).to(values.dtype)
        if HALF:
            values = values.to(gl.float16)
        w = weights[i]
        if EPILOGUE == SILU_MUL:
            u = ups[i]
        if FORMAT == INT8:
            w = _without_signs(w)
            products = mma_v2(_operand(w, shift, W_LAYOUT, HALF, WARPS, FORMAT), values, products)
            uppers = mma_v2(_operand(w, shift + 4, W_LAYOUT, HALF, WARPS, FORMAT), values, uppers)
            if EPILOGUE == SILU_MUL:
                u = _without_signs(u)
                products_up = mma_v2(_operand(u, shift, W_LAYOUT, HALF, WARPS, FORMAT), values, products_up)
                uppers_up = mma_v2(_operand(u, shift + 4, W_LAYOUT, HALF, WARPS, FORMAT), values, uppers_up)
            sums = mma_v2(ones, values, sums)
        elif GROUP:
            group = (i * TILE + s_warp * INNER) // STEP
            inside = (s_column < N) & (group < GROUPS)
            scale = gl.load(scales + s_column * GROUPS + group, mask=inside, other=0.0).to(gl.float32)
            if X_GROUPS:
                x_inside = (s_token < tokens) & (group < GROUPS)
                x_scale = gl.load(x_scales + s_token * X_GROUPS + group, mask=x_inside, other=0.0)
            found = mma_v2(_operand(w, shift, W_LAYOUT, HALF, WARPS, FORMAT), values, nothing)
            if FORMAT == INT4:
                total = mma_v2(ones, values, nothing)
                zero = ZERO
                if HAS_ZEROS:
                    zero = gl.load(zeros + s_column * GROUPS + group, mask=inside, other=0).to(gl.float32)
                found -= total * (128.0 + zero)
            found *= scale
            if X_GROUPS:
                found *= x_scale
            products += found
            if EPILOGUE == SILU_MUL:
                later = (N + s_column) * GROUPS + group
                scale = gl.load(scales + later, mask=inside, other=0.0).to(gl.float32)
                found = mma_v2(_operand(u, shift, W_LAYOUT, HALF, WARPS, FORMAT), values, nothing)
                if FORMAT == INT4:
                    if HAS_ZEROS:
                        zero = gl.load(zeros + later, mask=inside, other=0).to(gl.float32)
                    found -= total * (128.0 + zero)
                found *= scale
                if X_GROUPS:
                    found *= x_scale
                products_up += found
        else:
            products = mma_v2(_operand(w, shift, W_LAYOUT, HALF, WARPS, FORMAT), values, products)
            if EPILOGUE == SILU_MUL:
                products_up = mma_v2(_operand(u, shift, W_LAYOUT, HALF, WARPS, FORMAT), values, products_up)
            if FORMAT == INT4:
                sums = mma_v2(ones, values, sums)
    if FORMAT == INT8:
        # 16 * (128 + upper) + 128 + lower is 2304 more than the number.
        products += 16.0 * uppers - 2304.0 * sums
        products_up += 16.0 * uppers_up - 2304.0 * sums
    if FORMAT == INT4 and not GROUP:
        zero = ZERO
        up_zero = ZERO
        if HAS_ZEROS:
            zero = gl.load(zeros + s_column, mask=s_column < N, other=0).to(gl.float32)
            up_zero = zero
            if EPILOGUE == SILU_MUL:
                up_zero = gl.load(zeros + N + s_column, mask=s_column < N, other=0).to(gl.float32)
        products -= sums * (128.0 + zero)
        products_up -= sums * (128.0 + up_zero)
    product = gl.sum(products, 0)
    up = product
    if EPILOGUE == SILU_MUL:
        up = gl.sum(products_up, 0)
    if not GROUP:
        product *= gl.load(scales + out_column, mask=out_column < N, other=0.0).to(gl.float32)
        if EPILOGUE == SILU_MUL:
            up *= gl.load(scales + N + out_column, mask=out_column < N, other=0.0).to(gl.float32)
    if X_SCALED and not X_GROUPS:
        factor = gl.load(x_scales + out_token, mask=out_token < tokens, other=0.0)
        product *= factor
        up *= factor
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


def supports_quantized_small_batch(
    weights: Sequence[QuantizedWeight], *, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether `quantized_small_batch_linear` serves products with such weights there."""
    return is_hopper(device) and dtype == torch.bfloat16 and all(map(_is_served, weights))


def _is_served(weight: QuantizedWeight) -> bool:
    if weight.kind == "int8":
        return weight.zeros is None and weight.group_size is None and weight.inner % 16 == 0
    tile = 128 if weight.kind == "int4" else 64
    return weight.kind != "fp4" and weight.inner % 32 == 0 and (weight.group_size or tile) % tile == 0


def quantized_small_batch_linear(
    *,
    x: torch.Tensor | RoundedActivations,
    weight: QuantizedWeight,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
    out: torch.Tensor | None = None,
    tiles: SmallBatchTiles | None = None,
) -> torch.Tensor:
    """`norm(x) @ dequantize(weight).T`, then added to the residual, or gated; where
    `supports_quantized_small_batch`.

    Args:
        x: [tokens, inner], bfloat16, contiguous, at most 16 tokens; or rounded, and then without
            `norm_weight`, in one group a row or in the weight's groups.
        weight: [columns, inner].
        norm_weight: [inner]: the weight of an RMS norm of `x` with `eps`; None for no norm.
        residual: [tokens, columns], contiguous: the product is added to it in place, and it is returned.
        silu_mul: `weight` is [2 * size, inner], gate and up, and `silu(gate) * up` returns.
        out: [tokens, columns] or with `silu_mul` [tokens, size], contiguous, to write into; None for a new
            one. Not with `residual`.
        tiles: how the kernel is run; None to choose.

    Returns:
        [tokens, columns], or with `silu_mul` [tokens, size]: fp32 sums of products of bfloat16 (`x` times the
        norm's weight is rounded once), rounded to the dtype of `x`.
    """
    rounded = x if isinstance(x, RoundedActivations) else None
    values = x.values if isinstance(x, RoundedActivations) else x
    tokens, inner = values.shape
    if tokens > 16:
        raise ValueError(f"x: expected at most 16 rows, got {tokens}")
    if not _is_served(weight):
        raise ValueError(f"weight: {weight.kind} in groups of {weight.size} is left to quantized_linear")
    columns = weight.rows // 2 if silu_mul else weight.rows
    if residual is not None:
        out = residual
    elif out is None:
        out = torch.empty((tokens, columns), dtype=values.dtype, device=values.device)
    x_groups = 0 if rounded is None or rounded.group_size is None else rounded.scales.shape[1]
    if tiles is None:
        tiles = choose_small_batch_tiles(weight, silu_mul=silu_mul)
    count = triton.cdiv(inner, tiles.num_warps * (128 if weight.kind == "int4" else 64))
    dependent = supports_dependent_launch(values.device)
    _quantized_small_batch_linear_kernel[(triton.cdiv(columns, COLUMNS.value),)](
        x=values,
        x_scales=None if rounded is None else rounded.scales,
        data=weight.data if weight.kind == "fp8" else weight.data.view(torch.int32),
        scales=weight.scales,
        zeros=weight.zeros,
        norm_weight=norm_weight,
        residual=residual,
        out=out,
        eps=eps,
        tokens=tokens,
        N=columns,
        K=inner,
        FORMAT={"int4": INT4, "int8": INT8, "fp8": FP8}[weight.kind],
        GROUP=weight.group_size or 0,
        HAS_ZEROS=weight.zeros is not None,
        ZERO=float(INT4_ZERO),
        X_SCALED=rounded is not None,
        X_GROUPS=x_groups,
        HAS_NORM=norm_weight is not None,
        EPILOGUE=SILU_MUL if silu_mul else ADD if residual is not None else PLAIN,
        DEPENDENT=dependent,
        TOKENS=8 if tokens <= 8 else 16,
        AHEAD=min(count, tiles.ahead),
        X_AHEAD=min(count, tiles.x_ahead),
        num_warps=tiles.num_warps,
        **launch_options(dependent),
    )
    return out


def choose_small_batch_tiles(weight: QuantizedWeight, *, silu_mul: bool) -> SmallBatchTiles:
    """Tiles for a product with a weight, of half its rows with `silu_mul`; as measured on an H200."""
    if silu_mul:
        return SmallBatchTiles(4, 6 if weight.kind == "int4" else 8)
    if weight.inner > 4096:
        return SmallBatchTiles(8, 6 if weight.kind == "int4" else 8)
    return SmallBatchTiles(4, 6 if weight.kind == "fp8" and weight.group_size is None else 12)


def is_faster_after_norm(weight: QuantizedWeight, *, silu_mul: bool) -> bool:
    """Whether a norm of its own and a product without are faster than both in one; as measured on an H200."""
    return weight.kind == "int8" or (weight.kind == "int4" and not silu_mul)
