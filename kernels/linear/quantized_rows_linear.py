"""Products of up to 128 tokens with a quantized weight whose inputs are not rounded, on tensor cores.

    out = x @ dequantize(weight).T

Rows of the weight are the rows of the matrix instruction and tokens its columns. Weights and tokens come
through shared memory, some steps of 128 inner elements ahead; a thread reads 16 bytes of a weight's row and
widens them to float16, exactly, in the registers where the instruction takes them (see `halves`). That
permutes the inner dimension, and the tokens were permuted alike (see `permuted_halves`). Scales of groups
multiply the numbers there, in float16, once a power of two has taken a row's largest to 1 to 2: so there is
one sum, in fp32, and registers suffice for two programs on a multiprocessor. Where columns are few, several
programs share the inner dimension, and their sums are added up by a kernel after this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    let_next_start_gluon,
    supports_dependent_launch,
    wait_for_inputs,
    wait_for_inputs_gluon,
)
from dodona.kernels.devices import count_multiprocessors, is_hopper
from dodona.kernels.linear.halves import (
    halves_of_bytes,
    halves_of_e4m3,
    halves_of_nibbles,
    products_of_halves,
)
from dodona.kernels.linear.permuted_halves import BLOCK, permuted_halves
from dodona.kernels.linear.quantized_weight import QuantizedWeight

INNER = gl.constexpr(BLOCK)
"""Inner elements of a step."""
MOST_ROWS = 128

INT4, INT8, FP8 = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)

_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@dataclass(frozen=True, slots=True)
class RowsTiles:
    """How a product is cut up."""

    n: int
    """Columns per program, 64 or 128: a warp has 16 of them."""
    splits: int
    """Programs that share the inner dimension."""
    stages: int
    """Steps in shared memory."""


@triton.constexpr_function
def _warp_bases(warps: int, rank: int) -> list[list[int]]:
    """Of a linear layout in whose first dimension a warp has 16 places."""
    return [[16 << bit] + [0] * (rank - 1) for bit in range(warps.bit_length() - 1)]


@gluon.jit
def _fetch_weight(slot, source, step, inside, STEP_WORDS: gl.constexpr):
    async_copy.async_copy_global_to_shared(slot, source + step * STEP_WORDS, mask=inside)


@gluon.jit
def _operand(
    words,
    zero,
    scale,
    WIDE: gl.constexpr,
    W_LAYOUT: gl.constexpr,
    BLOCK_N: gl.constexpr,
    FORMAT: gl.constexpr,
    SCALED: gl.constexpr,
):
    """The instruction's operand [BLOCK_N, INNER] of a step's words; `scale`: [BLOCK_N, 1, 1, 1, 1] halves."""
    if FORMAT == INT4:
        given = gl.convert_layout(
            gl.reshape(words, [BLOCK_N, 1, 4, 4]), gl.SliceLayout(4, WIDE), assert_trivial=True
        )
        wide = halves_of_nibbles(given[:, :, :, :, None], zero)
        if SCALED:
            wide = products_of_halves(wide, scale)
        wide = gl.permute(gl.reshape(wide, [BLOCK_N, 4, 4, 4, 2]), [0, 2, 3, 1, 4])
    else:
        given = gl.convert_layout(
            gl.reshape(words, [BLOCK_N, 2, 4, 4]), gl.SliceLayout(4, WIDE), assert_trivial=True
        )
        if FORMAT == INT8:
            wide = halves_of_bytes(given[:, :, :, :, None] + zero)
        else:
            wide = halves_of_e4m3(given[:, :, :, :, None] + zero)
        if SCALED:
            wide = products_of_halves(wide, scale)
        wide = gl.permute(gl.reshape(wide, [BLOCK_N, 2, 4, 4, 2, 2]), [0, 1, 3, 4, 2, 5])
    return gl.convert_layout(gl.reshape(wide, [BLOCK_N, INNER]), W_LAYOUT, assert_trivial=True)


@gluon.jit
def _inverse_of_largest(
    scales,
    first_column,
    W_ROWS: gl.constexpr,
    N: gl.constexpr,
    GROUPS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    WARPS: gl.constexpr,
):
    """[BLOCK_N]: a power of two for each row that takes the largest size of its scales to 1 to 2."""
    L: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])
    SIZE: gl.constexpr = triton.next_power_of_2(GROUPS)
    row = first_column + gl.arange(0, BLOCK_N, gl.SliceLayout(1, L))[:, None]
    group = gl.arange(0, SIZE, gl.SliceLayout(0, L))[None, :]
    exists = (row < N) & (group < GROUPS)
    top = gl.max(gl.abs(gl.load(scales + row * GROUPS + group, mask=exists, other=0.0).to(gl.float32)), 1)
    exponent = gl.minimum(gl.maximum(254 - (top.to(gl.int32, bitcast=True) >> 23), 1), 253)
    return gl.convert_layout((exponent << 23).to(gl.float32, bitcast=True), W_ROWS)


@gluon.jit(do_not_specialize=["rows"])
def _quantized_rows_linear_kernel(
    x,
    factors,
    data,
    scales,
    zeros,
    out,
    rows,
    N: gl.constexpr,
    K: gl.constexpr,
    FORMAT: gl.constexpr,
    GROUP: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    DEPENDENT: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    TOKENS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """`GROUP`: 0, or inner elements per scale, a multiple of `INNER`. `out`: [splits, rows, N]."""
    if DEPENDENT:
        let_next_start_gluon()
    WARPS: gl.constexpr = gl.num_warps()
    NUMBERS: gl.constexpr = 8 if FORMAT == INT4 else 4
    ROW_WORDS: gl.constexpr = K // NUMBERS
    STEP_WORDS: gl.constexpr = INNER // NUMBERS
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TOKENS, 16])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, MMA)
    if FORMAT == INT4:
        WORDS: gl.constexpr = gl.DistributedLinearLayout(
            [[0, 1], [0, 2], [8, 0]],
            [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
            _warp_bases(WARPS, 2),
            [],
            [BLOCK_N, 16],
        )
        WIDE: gl.constexpr = gl.DistributedLinearLayout(
            [
                [0, 0, 0, 0, 1],
                [0, 0, 0, 0, 2],
                [0, 0, 0, 0, 4],
                [0, 0, 0, 1, 0],
                [0, 0, 0, 2, 0],
                [8, 0, 0, 0, 0],
            ],
            [[0, 0, 1, 0, 0], [0, 0, 2, 0, 0], [1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [4, 0, 0, 0, 0]],
            _warp_bases(WARPS, 5),
            [],
            [BLOCK_N, 1, 4, 4, 8],
        )
        W_SHARED: gl.constexpr = gl.SwizzledSharedLayout(4, 2, 4, [1, 0])
    else:
        WORDS: gl.constexpr = gl.DistributedLinearLayout(
            [[0, 1], [0, 2], [0, 16], [8, 0]],
            [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
            _warp_bases(WARPS, 2),
            [],
            [BLOCK_N, 32],
        )
        WIDE: gl.constexpr = gl.DistributedLinearLayout(
            [
                [0, 0, 0, 0, 1],
                [0, 0, 0, 0, 2],
                [0, 0, 0, 1, 0],
                [0, 0, 0, 2, 0],
                [0, 1, 0, 0, 0],
                [8, 0, 0, 0, 0],
            ],
            [[0, 0, 1, 0, 0], [0, 0, 2, 0, 0], [1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [4, 0, 0, 0, 0]],
            _warp_bases(WARPS, 5),
            [],
            [BLOCK_N, 2, 4, 4, 4],
        )
        W_SHARED: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    X_SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    w_tiles = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_N, STEP_WORDS], W_SHARED)
    x_tiles = gl.allocate_shared_memory(gl.float16, [STAGES, TOKENS, INNER], X_SHARED)

    # The program's share of the inner dimension: `count` steps from `begin` on.
    STEPS: gl.constexpr = K // INNER
    EACH: gl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    split = gl.program_id(1)
    begin = split * EACH
    count = gl.minimum(EACH, STEPS - begin)
    first_column = gl.program_id(0) * BLOCK_N

    W_COPY: gl.constexpr = gl.BlockedLayout([1, 4], [128 // STEP_WORDS, STEP_WORDS // 4], [WARPS, 1], [1, 0])
    w_row = gl.arange(0, BLOCK_N, gl.SliceLayout(1, W_COPY))[:, None]
    word = gl.arange(0, STEP_WORDS, gl.SliceLayout(0, W_COPY))[None, :]
    w_source = data + first_column.to(gl.int64) * ROW_WORDS + begin * STEP_WORDS
    w_source = w_source + (w_row * ROW_WORDS + word)
    w_exists = (first_column + w_row < N) & (word >= 0)
    X_COPY: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    token = gl.arange(0, TOKENS, gl.SliceLayout(1, X_COPY))[:, None]
    element = gl.arange(0, INNER, gl.SliceLayout(0, X_COPY))[None, :]
    x_source = x + token * K + begin * INNER + element
    x_exists = (token < rows) & (element >= 0)
    for i in gl.static_range(STAGES - 1):
        _fetch_weight(w_tiles.index(i), w_source, i, w_exists & (i < count), STEP_WORDS)
    if DEPENDENT:
        wait_for_inputs_gluon()
    for i in gl.static_range(STAGES - 1):
        async_copy.async_copy_global_to_shared(
            x_tiles.index(i), x_source + i * INNER, mask=x_exists & (i < count)
        )
        async_copy.commit_group()

    GROUPS: gl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 1
    numbers = gl.zeros([1, 1, 1, 1, NUMBERS], gl.int32, WIDE)
    usual_zero = numbers + (0x64086408 if FORMAT == INT4 else 0)
    W_ROWS: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, gl.SliceLayout(4, WIDE))))
    column = first_column + gl.arange(0, BLOCK_N, W_ROWS)
    no_scale = gl.zeros([1, 1, 1, 1, 1], gl.float16, WIDE)
    group = gl.minimum(begin * INNER // GROUP, GROUPS - 1) if GROUP else 0
    if HAS_ZEROS:
        next_zero = gl.load(zeros + column * GROUPS + group, mask=column < N, other=0)
    if GROUP:
        next_scale = gl.load(scales + column * GROUPS + group, mask=column < N, other=0.0)
        inverse = _inverse_of_largest(scales, first_column, W_ROWS, N, GROUPS, BLOCK_N, WARPS)
    products = gl.zeros([BLOCK_N, TOKENS], gl.float32, MMA)
    for i in range(count):
        async_copy.wait_group(STAGES - 2)
        _barrier()
        fence_async_shared()
        later = i + STAGES - 1
        stage = later % STAGES
        _fetch_weight(w_tiles.index(stage), w_source, later, w_exists & (later < count), STEP_WORDS)
        async_copy.async_copy_global_to_shared(
            x_tiles.index(stage), x_source + later * INNER, mask=x_exists & (later < count)
        )
        async_copy.commit_group()
        stage = i % STAGES
        words = w_tiles.index(stage).load(WORDS)
        # What belongs to the next step's group is under way while this step's products run.
        group = gl.minimum((begin + i + 1) * INNER // GROUP, GROUPS - 1) if GROUP else 0
        zero = usual_zero
        scale = no_scale
        if HAS_ZEROS:
            pairs = 0x64006400 + next_zero.to(gl.int32) * 0x00010001
            zero = pairs[:, None, None, None, None] + numbers
            next_zero = gl.load(zeros + column * GROUPS + group, mask=column < N, other=0)
        if GROUP:
            scale = (next_scale.to(gl.float32) * inverse).to(gl.float16)[:, None, None, None, None]
            next_scale = gl.load(scales + column * GROUPS + group, mask=column < N, other=0.0)
        w = _operand(words, zero, scale, WIDE, W_LAYOUT, BLOCK_N, FORMAT, GROUP > 0)
        products = warpgroup_mma(w, x_tiles.index(stage).permute((1, 0)), products)
    async_copy.wait_group(0)
    row = first_column + gl.arange(0, BLOCK_N, ROWS)
    if GROUP:
        products *= gl.convert_layout(1.0 / inverse, ROWS)[:, None]
    else:
        products *= gl.load(scales + row, mask=row < N, other=0.0).to(gl.float32)[:, None]
    OUT: gl.constexpr = gl.BlockedLayout([BLOCK_N // 32, 1], [32, 1], [1, WARPS], [0, 1])
    products = gl.convert_layout(products, OUT)
    out_column = first_column + gl.arange(0, BLOCK_N, gl.SliceLayout(1, OUT))[:, None]
    out_token = gl.arange(0, TOKENS, gl.SliceLayout(0, OUT))
    factor = gl.load(factors + out_token, mask=out_token < rows, other=0.0)[None, :]
    out_token = out_token[None, :]
    target = out + (split * rows + out_token).to(gl.int64) * N + out_column
    exists = (out_token < rows) & (out_column < N)
    gl.store(target, (products * factor).to(out.dtype.element_ty), mask=exists)


@triton.jit
def _sum_splits_kernel(parts, out, size, SPLITS: tl.constexpr, DEPENDENT: tl.constexpr, SIZE: tl.constexpr):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for i in tl.static_range(SPLITS):
        total += tl.load(parts + i * size + at, mask=at < size, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)


def supports_quantized_rows(
    weight: QuantizedWeight, rows: int, *, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether `quantized_rows_linear` serves products of so many rows with such a weight there."""
    return is_hopper(device) and dtype == torch.bfloat16 and rows <= MOST_ROWS and _is_served(weight)


def _is_served(weight: QuantizedWeight) -> bool:
    if weight.kind == "fp4" or (weight.kind != "int4" and weight.zeros is not None):
        return False
    return weight.inner % BLOCK == 0 and (weight.group_size or BLOCK) % BLOCK == 0


def quantized_rows_linear(
    *, x: torch.Tensor, weight: QuantizedWeight, tiles: RowsTiles | None = None
) -> torch.Tensor:
    """`x @ dequantize(weight).T` of few rows, where `supports_quantized_rows`.

    Args:
        x: [rows, inner], bfloat16, at most `MOST_ROWS` rows; they may be strided, the last dimension is
            contiguous.
        weight: [columns, inner].
        tiles: how to cut the work up; None to choose.

    Returns:
        [rows, columns]: fp32 sums rounded once to bfloat16.
    """
    rows, inner = x.shape
    if rows > MOST_ROWS:
        raise ValueError(f"x: expected at most {MOST_ROWS} rows, got {rows}")
    if not _is_served(weight):
        raise ValueError(f"weight: {weight.kind} in groups of {weight.size} is left to quantized_linear")
    given = permuted_halves(x=x, nibbles=weight.kind == "int4")
    if tiles is None:
        tiles = choose_rows_tiles(weight, rows, count_multiprocessors(x.device))
    out = torch.empty((rows, weight.rows), dtype=x.dtype, device=x.device)
    parts = out
    if tiles.splits > 1:
        parts = torch.empty((tiles.splits, rows, weight.rows), dtype=torch.float32, device=x.device)
    dependent = supports_dependent_launch(x.device)
    _quantized_rows_linear_kernel[(triton.cdiv(weight.rows, tiles.n), tiles.splits)](
        x=given.values,
        factors=given.factors,
        data=weight.data.view(torch.int32),
        scales=weight.scales,
        zeros=weight.zeros,
        out=parts,
        rows=rows,
        N=weight.rows,
        K=inner,
        FORMAT={"int4": INT4, "int8": INT8, "fp8": FP8}[weight.kind],
        GROUP=weight.group_size or 0,
        HAS_ZEROS=weight.zeros is not None,
        DEPENDENT=dependent,
        SPLITS=tiles.splits,
        BLOCK_N=tiles.n,
        TOKENS=triton.next_power_of_2(max(rows, 16)),
        STAGES=tiles.stages,
        num_warps=tiles.n // 16,
        # Two programs of 128 columns and rows fill a multiprocessor.
        **({"maxnreg": 128} if tiles.n == 128 and rows > 64 else {}),
        **launch_options(dependent),
    )
    if tiles.splits > 1:
        size = rows * weight.rows
        _sum_splits_kernel[(triton.cdiv(size, 1024),)](
            parts=parts,
            out=out,
            size=size,
            SPLITS=tiles.splits,
            DEPENDENT=dependent,
            SIZE=1024,
            num_warps=4,
            **launch_options(dependent),
        )
    return out


def choose_rows_tiles(weight: QuantizedWeight, rows: int, multiprocessors: int) -> RowsTiles:
    """Tiles for a product of so many rows; as measured on an H200."""
    is_wide = weight.rows >= 64 * 2 * multiprocessors
    if rows > 64:
        n = 64 if weight.kind == "int4" else 128
    elif rows > 32:
        n = 128 if is_wide else 64
    else:
        n = 64 if is_wide or weight.kind != "int4" else 128
    programs = triton.cdiv(weight.rows, n)
    splits = max(1, min(2 * multiprocessors // programs, weight.inner // (4 * BLOCK)))
    if rows > 64:
        return RowsTiles(n, splits, stages=2 if n == 128 or is_wide else 3)
    return RowsTiles(n, splits, stages=3 if n == 128 else 4)
