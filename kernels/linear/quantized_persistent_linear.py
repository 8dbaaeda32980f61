"""Linear layers of a step with one token and a quantized weight, on tensor cores, by programs that stay.

    out = epilogue(round(norm(x)) @ dequantize(weight).T)

Each multiprocessor has one or two programs. A program normalises and rounds `x` once, keeps it in shared
memory and then goes through its tiles of 16 columns: so the activations cost each multiprocessor once what
they would cost each tile otherwise, and need no kernels of their own. Its warps share the inner dimension,
128 elements each at a time, and meet once a tile.

Weights pass through a ring in shared memory. Each thread has places of its own there, copies into them what
it will need, 16 bytes at a time, as far ahead as the ring is long, and reads them back without waiting for
other threads; so the order of the copies is all that has to be kept. The first are under way before the
kernel waits for its inputs (see `dependent_launch`). A thread's 16 bytes are those that the matrix
instruction wants in its registers: that permutes the inner dimension, alike in both operands.

Numbers become float16, exactly (see `halves`). Inputs that are not rounded are scaled by a power of two, so
that the largest is just below 2**15. All columns of the instruction hold the same token.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

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
from dodona.kernels.devices import count_multiprocessors, is_hopper
from dodona.kernels.linear.halves import halves_of_bytes, halves_of_e4m3, halves_of_nibbles
from dodona.kernels.linear.persistent_tiles import PersistentTiles, choose_persistent_tiles
from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.kernels.linear.round_activations import Rounding
from dodona.kernels.linear.shared_ring import check_ring, ring_start
from dodona.kernels.linear.single_token_linear import ADD, PLAIN, SILU_MUL

COLUMNS = gl.constexpr(16)
"""Columns of a tile: rows of the matrix instruction."""
INNER = gl.constexpr(128)
"""Inner elements of a warp's step."""
TOKENS = gl.constexpr(8)
"""Columns of the matrix instruction."""

MOST_TILES = 8
"""Tiles of a program: their scales stay in shared memory."""

INT4, INT8, FP8 = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)
AS_IS, ROUND_INT8, ROUND_FP8 = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)

_EPS = gl.constexpr(1.1920929e-07)  # of fp32: the scale of zeros
_ROUNDER = gl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no bits behind the point


@triton.constexpr_function
def _warp_bases(warps: int, rank: int) -> list[list[int]]:
    """Of a linear layout whose first dimension of `rank` is the warp."""
    return [[1 << bit] + [0] * (rank - 1) for bit in range(warps.bit_length() - 1)]


@gluon.jit
def _fetch(
    slot,
    data,
    tile,
    step,
    column,
    place,
    N: gl.constexpr,
    ROW_WORDS: gl.constexpr,
    STEP_WORDS: gl.constexpr,
):
    """Start to copy the words of a step of a tile into each thread's own places in a slot of the ring; what
    doesn't exist becomes zeros. `place`: of the first of four words, in a step of a row."""
    offset = (column * ROW_WORDS + place) * 4
    size = place * 0 + gl.where(tile * COLUMNS < N, 16, 0)
    # Where nothing is read the address must be good all the same.
    if N % COLUMNS != 0 or ROW_WORDS % STEP_WORDS != 0:
        exists = (tile * COLUMNS + column < N) & (step * STEP_WORDS + place < ROW_WORDS)
        size = gl.where(exists, 16, 0)
        offset = gl.where(exists, offset, 0)
    source = data.to(gl.int64) + (tile.to(gl.int64) * (COLUMNS * ROW_WORDS) + step * STEP_WORDS) * 4
    source = gl.where(tile * COLUMNS < N, source, data.to(gl.int64))
    gl.inline_asm_elementwise(
        "cp.async.cg.shared.global.L2::128B [$1], [$2], 16, $3; // $0",
        "=r,r,l,r",
        [slot, source + offset, size],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )
    gl.inline_asm_elementwise("cp.async.commit_group; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _fetched(slot, words, AHEAD: gl.constexpr):
    """The words in a slot, [.., 4], when all but the last `AHEAD` fetches have arrived; `words`: zeros."""
    gl.inline_asm_elementwise(
        "cp.async.wait_group $1; // $0", "=r,n", [AHEAD], dtype=gl.int32, is_pure=False, pack=1
    )
    return gl.inline_asm_elementwise(
        "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];",
        "=r,=r,=r,=r,r,r,r,r",
        [slot[:, :, :, :, None] + words],
        dtype=gl.int32,
        is_pure=False,
        pack=4,
    )


@gluon.jit
def _load_groups(
    source,
    first,
    programs,
    step,
    TILES: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    GROUP: gl.constexpr,
    WARPS: gl.constexpr,
    GROUP_COLUMNS: gl.constexpr,
):
    """What belongs to the groups of a step of all tiles of a program: [TILES, WARPS, GROUP_COLUMNS]."""
    GROUPS: gl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 1
    L: gl.constexpr = gl.BlockedLayout(
        [1, 1, 1], [1, 32 // GROUP_COLUMNS, GROUP_COLUMNS], [2, WARPS // 2, 1], [2, 1, 0]
    )
    tile = first + gl.arange(0, TILES, gl.SliceLayout(1, gl.SliceLayout(2, L)))[:, None, None] * programs
    warp = gl.arange(0, WARPS, gl.SliceLayout(0, gl.SliceLayout(2, L)))[None, :, None]
    column = gl.arange(0, GROUP_COLUMNS, gl.SliceLayout(0, gl.SliceLayout(1, L)))[None, None, :]
    column += tile * COLUMNS
    group = ((step * WARPS + warp) * INNER) // GROUP if GROUP else warp * 0
    return gl.load(source + (column * GROUPS + group), mask=(column < N) & (group < GROUPS), other=0)


@gluon.jit
def _operand(words, zero, W_LAYOUT: gl.constexpr, WARPS: gl.constexpr, FORMAT: gl.constexpr):
    """The instruction's operand [WARPS, COLUMNS, INNER] of a step's words."""
    wide = words[:, :, :, :, :, None]
    if FORMAT == INT4:
        wide = halves_of_nibbles(wide, zero)
        wide = gl.reshape(wide, [WARPS, COLUMNS, 1, 4, 4, 8])
    else:
        if FORMAT == INT8:
            wide = halves_of_bytes(wide + zero)
        else:
            wide = halves_of_e4m3(wide + zero)
        wide = gl.reshape(wide, [WARPS, COLUMNS, 2, 4, 2, 8])
    wide = gl.reshape(gl.permute(wide, [0, 1, 2, 4, 3, 5]), [WARPS, COLUMNS, INNER])
    return gl.convert_layout(wide, W_LAYOUT, assert_trivial=True)


@gluon.jit
def _through_bfloat16(h):
    """fp32 rounded to bfloat16, two at a time."""
    bits = gl.inline_asm_elementwise(
        "{ .reg .b32 p; cvt.rn.bf16x2.f32 p, $3, $2; shl.b32 $0, p, 16; and.b32 $1, p, 0xFFFF0000; }",
        "=r,=r,f,f",
        [h],
        dtype=gl.int32,
        is_pure=True,
        pack=2,
    )
    return bits.to(gl.float32, bitcast=True)


@gluon.jit
def _round(h, scale, inverse, ROUND: gl.constexpr):
    """`h / scale` as a number of 8 bits, in float16; `inverse`: 1 / `scale`."""
    steps = h * inverse
    scale, inverse = gl.broadcast(scale, h)[0], gl.broadcast(inverse, h)[0]
    steps = gl.fma(gl.fma(-steps, scale, h), inverse, steps)  # the quotient's last bit
    if ROUND == ROUND_INT8:
        rounded = gl.minimum((steps + _ROUNDER) - _ROUNDER, 127.0)
    else:
        rounded = steps.to(gl.float8e4nv)
    return rounded.to(gl.float16)


@gluon.jit
def _scale_of(top, ROUND: gl.constexpr):
    scale = top / (127.5 if ROUND == ROUND_INT8 else 448.0)
    return gl.where(scale == 0, _EPS, scale)


@gluon.jit
def _quantized_persistent_linear_kernel(
    x,
    data,
    scales,
    zeros,
    norm_weight,
    residual,
    out,
    eps,
    N: gl.constexpr,
    K: gl.constexpr,
    FORMAT: gl.constexpr,
    GROUP: gl.constexpr,
    SHARED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    ROUND: gl.constexpr,
    X_GROUPED: gl.constexpr,
    HAS_NORM: gl.constexpr,
    EPILOGUE: gl.constexpr,
    DEPENDENT: gl.constexpr,
    TILES: gl.constexpr,
    RING: gl.constexpr,
):
    """`GROUP`: 0, or inner elements per scale, a multiple of `INNER`. `SHARED`: the rows of a tile have the
    same scales. `X_GROUPED`: `x` is rounded in groups of `INNER`, otherwise as a whole."""
    if DEPENDENT:
        let_next_start_gluon()
    WARPS: gl.constexpr = gl.num_warps()
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, MMA, 8)
    X_LAYOUT: gl.constexpr = gl.DotOperandLayout(1, MMA, 8)
    # A step's words: warp, column, segment of 64 bytes, lane, word; then the numbers of a word.
    SEGMENTS: gl.constexpr = 1 if FORMAT == INT4 else 2
    NUMBERS: gl.constexpr = 8 if FORMAT == INT4 else 4
    HALVES: gl.constexpr = 4 // SEGMENTS
    ROW_WORDS: gl.constexpr = K // NUMBERS
    # A lane's 32 elements of `x` in a step.
    KEPT: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [0, 64]],
        [[0, 16], [0, 32], [0, 0], [0, 0], [0, 0]],
        _warp_bases(WARPS, 2),
        [],
        [WARPS, 128],
    )
    if FORMAT == INT4:
        WIDE: gl.constexpr = gl.DistributedLinearLayout(
            [
                [0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 2],
                [0, 0, 0, 0, 0, 4],
                [0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 2, 0],
                [0, 8, 0, 0, 0, 0],
            ],
            [
                [0, 0, 0, 1, 0, 0],
                [0, 0, 0, 2, 0, 0],
                [0, 1, 0, 0, 0, 0],
                [0, 2, 0, 0, 0, 0],
                [0, 4, 0, 0, 0, 0],
            ],
            _warp_bases(WARPS, 6),
            [],
            [WARPS, 16, 1, 4, 4, 8],
        )
    else:
        WIDE: gl.constexpr = gl.DistributedLinearLayout(
            [
                [0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 2],
                [0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 2, 0],
                [0, 0, 1, 0, 0, 0],
                [0, 8, 0, 0, 0, 0],
            ],
            [
                [0, 0, 0, 1, 0, 0],
                [0, 0, 0, 2, 0, 0],
                [0, 1, 0, 0, 0, 0],
                [0, 2, 0, 0, 0, 0],
                [0, 4, 0, 0, 0, 0],
            ],
            _warp_bases(WARPS, 6),
            [],
            [WARPS, 16, 2, 4, 4, 4],
        )
    L5: gl.constexpr = gl.SliceLayout(5, WIDE)
    L4: gl.constexpr = gl.SliceLayout(4, L5)
    L3: gl.constexpr = gl.SliceLayout(3, L4)
    L2: gl.constexpr = gl.SliceLayout(2, L3)
    TILE: gl.constexpr = WARPS * INNER
    STEPS: gl.constexpr = (K + TILE - 1) // TILE
    STEP_WORDS: gl.constexpr = TILE // NUMBERS
    COLUMN_TILES: gl.constexpr = (N + COLUMNS - 1) // COLUMNS
    GROUPS: gl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 1

    # Operands of a step come one after the other: the ring's units.
    OPERANDS: gl.constexpr = 2 if EPILOGUE == SILU_MUL else 1
    UNITS: gl.constexpr = STEPS * OPERANDS
    SLOT: gl.constexpr = WARPS * 1024 * SEGMENTS
    SLOTS: gl.constexpr = RING // SLOT
    lane = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, L4))))[None, None, None, :]
    segment = gl.arange(0, SEGMENTS, gl.SliceLayout(0, gl.SliceLayout(1, L3)))[None, None, :, None]
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, L2))[None, :, None, None]
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, L2))[:, None, None, None]
    place = warp * (INNER // NUMBERS) + segment * 16 + lane * 4
    # Each thread has places of its own there, neighbours' side by side.
    own = warp * 512 + (column % 8) * 64 + lane * 16
    own += (segment * 2 + column // 8) * (WARPS * 512)
    own += ring_start()
    words = gl.zeros([1, 1, 1, 1, 4], gl.int32, L5)
    # The ring, which asm addresses, and behind it the sums of warps, for all tiles: the largest buffer, and
    # used to the end, so that Triton puts it at the beginning and nothing into its place.
    SUMS_SIZE: gl.constexpr = OPERANDS * TILES * WARPS * COLUMNS
    RING_ROWS: gl.constexpr = RING // (4 * SUMS_SIZE)
    shared = gl.allocate_shared_memory(
        gl.float32, [RING_ROWS + 1, SUMS_SIZE], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    sums = shared.index(RING_ROWS)
    first = gl.program_id(0)
    programs = gl.num_programs(0)

    # What belongs to groups, of all tiles: [TILES, WARPS, columns] for each unit.
    S2: gl.constexpr = gl.SliceLayout(2, MMA)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    DEEP: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    GROUP_COLUMNS: gl.constexpr = 1 if SHARED else COLUMNS
    loaded = ()
    loaded_zeros = ()
    for i in gl.static_range(UNITS):
        step = i // OPERANDS
        if GROUP:
            of_operand = scales + (i % OPERANDS) * (N * GROUPS)
            loaded = loaded + (
                _load_groups(of_operand, first, programs, step, TILES, N, K, GROUP, WARPS, GROUP_COLUMNS),
            )
        if HAS_ZEROS:
            z_operand = zeros + (i % OPERANDS) * (N * GROUPS)
            loaded_zeros = loaded_zeros + (
                _load_groups(z_operand, first, programs, step, TILES, N, K, GROUP, WARPS, COLUMNS),
            )
    # `x`, step by step: [WARPS, INNER].
    GIVEN: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [WARPS, 1], [1, 0])
    x_at = gl.arange(0, WARPS, gl.SliceLayout(1, GIVEN))[:, None] * INNER
    x_at += gl.arange(0, INNER, gl.SliceLayout(0, GIVEN))[None, :]
    norms = ()
    if HAS_NORM:
        for i in gl.static_range(STEPS):
            norms = norms + (gl.load(norm_weight + i * TILE + x_at, mask=i * TILE + x_at < K, other=0.0),)
    for i in gl.static_range(SLOTS):
        tile = first + (i // UNITS) * programs
        part = data + (i % OPERANDS) * (N * ROW_WORDS)
        step = (i % UNITS) // OPERANDS
        _fetch(own + i * SLOT, part, tile, step, column, place, N, ROW_WORDS, STEP_WORDS)
    kept = ()
    kept_zeros = ()
    for i in gl.static_range(UNITS):
        if GROUP:
            place_of = gl.allocate_shared_memory(scales.dtype.element_ty, [TILES, WARPS, GROUP_COLUMNS], FLAT)
            place_of._reinterpret(scales.dtype.element_ty, [TILES, WARPS, GROUP_COLUMNS], DEEP).store(
                loaded[i]
            )
            kept = kept + (place_of,)
        if HAS_ZEROS:
            z_place = gl.allocate_shared_memory(gl.int32, [TILES, WARPS, COLUMNS], FLAT)
            # Pairs of float16, 1024 + the zero point.
            pairs = 0x64006400 + loaded_zeros[i].to(gl.int32) * 0x00010001
            z_place._reinterpret(gl.int32, [TILES, WARPS, COLUMNS], DEEP).store(pairs)
            kept_zeros = kept_zeros + (z_place,)
    values = ()
    x_factors = ()
    for _ in gl.static_range(STEPS):
        values = values + (gl.allocate_shared_memory(gl.float16, [WARPS, INNER], FLAT),)
        if X_GROUPED:
            x_factors = x_factors + (
                gl.allocate_shared_memory(gl.float32, [WARPS], gl.SwizzledSharedLayout(1, 1, 1, [0])),
            )
    if DEPENDENT:
        wait_for_inputs_gluon()
    hs = ()
    for i in gl.static_range(STEPS):
        hs = hs + (gl.load(x + i * TILE + x_at, mask=i * TILE + x_at < K, other=0.0).to(gl.float32),)
    if HAS_NORM:
        squares = hs[0] * hs[0]
        for i in gl.static_range(1, STEPS):
            squares += hs[i] * hs[i]
        inverse = gl.rsqrt(gl.sum(gl.sum(squares, 1), 0) / K + eps)
        normed = ()
        for i in gl.static_range(STEPS):
            h = hs[i] * inverse * norms[i].to(gl.float32)
            if ROUND != AS_IS:
                h = _through_bfloat16(h)
            normed = normed + (h,)
        hs = normed
    factor = 1.0
    if not X_GROUPED:
        tops = gl.abs(hs[0])
        for i in gl.static_range(1, STEPS):
            tops = gl.maximum(tops, gl.abs(hs[i]))
        top = gl.max(gl.max(tops, 1), 0)
        if ROUND == AS_IS:
            exponent = gl.minimum(268 - (top.to(gl.int32, bitcast=True) >> 23), 253)
            up_to_half = (exponent << 23).to(gl.float32, bitcast=True)
            factor = ((254 - exponent) << 23).to(gl.float32, bitcast=True)
        else:
            factor = _scale_of(top, ROUND)
            inverse_factor = gl.div_rn(factor * 0.0 + 1.0, factor)
    for i in gl.static_range(STEPS):
        if X_GROUPED:
            x_scale = _scale_of(gl.max(gl.abs(hs[i]), 1), ROUND)
            x_factors[i].store(x_scale)
            x_inverse = gl.div_rn(x_scale * 0.0 + 1.0, x_scale)
            h = _round(hs[i], x_scale[:, None], x_inverse[:, None], ROUND)
        elif ROUND == AS_IS:
            h = (hs[i] * up_to_half).to(gl.float16)
        else:
            h = _round(hs[i], factor, inverse_factor, ROUND)
        # In the order of the operand: block of 64, half of it, lane, pair. Then a lane's halves side by side.
        h = gl.reshape(h, [WARPS, SEGMENTS, 4, HALVES, 8])
        h = gl.reshape(gl.permute(h, [0, 1, 3, 2, 4]), [WARPS, 2, 2, 4, 4, 2])
        h = gl.reshape(gl.permute(h, [0, 1, 3, 4, 2, 5]), [WARPS, INNER])
        values[i].store(h)

    # Sums of warps, for all tiles.
    SUMS: gl.constexpr = gl.BlockedLayout([1, WARPS, 1], [2, 1, 16], [WARPS, 1, 1], [2, 1, 0])
    OUT: gl.constexpr = gl.SliceLayout(1, SUMS)
    out_tile = first + gl.arange(0, TILES, gl.SliceLayout(1, OUT))[:, None] * programs
    out_column = out_tile * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, OUT))[None, :]
    exists = out_column < N
    row_scale = factor + out_column.to(gl.float32) * 0.0
    up_row_scale = row_scale
    if not GROUP:
        row_scale *= gl.load(scales + out_column, mask=exists, other=0.0).to(gl.float32)
        if EPILOGUE == SILU_MUL:
            up_row_scale *= gl.load(scales + N + out_column, mask=exists, other=0.0).to(gl.float32)
    if EPILOGUE == ADD:
        before = gl.load(residual + out_column, mask=exists, other=0.0)
    sums = sums._reinterpret(gl.float32, [OPERANDS * TILES, WARPS, COLUMNS], FLAT)

    nothing = gl.zeros([WARPS, COLUMNS, TOKENS], gl.float32, MMA)
    all_tokens = gl.zeros([1, 1, TOKENS], gl.float16, X_LAYOUT)
    numbers = gl.zeros([1, 1, 1, 1, 1, NUMBERS], gl.int32, WIDE)
    usual_zero = numbers + (0x64086408 if FORMAT == INT4 else 0)
    slot = first * 0
    for t in range((COLUMN_TILES - first + programs - 1) // programs):
        products = nothing
        products_up = nothing
        for i in gl.static_range(UNITS):
            w = _fetched(own + slot, words, SLOTS - 1)
            zero = usual_zero
            if HAS_ZEROS:
                zero = kept_zeros[i].index(t).load(L2)[:, :, None, None, None, None] + numbers
            if i % OPERANDS == 0:
                value = gl.reshape(values[i // OPERANDS].load(KEPT), [WARPS, 2, 4, 4, 2, 2])
                value = gl.reshape(gl.permute(value, [0, 1, 4, 2, 3, 5]), [WARPS, INNER])
                value = gl.convert_layout(value, gl.SliceLayout(2, X_LAYOUT), assert_trivial=True)[:, :, None]
                value = gl.broadcast(value, all_tokens)[0]
            if GROUP:
                scale = kept[i].index(t).load(S2).to(gl.float32)
                if X_GROUPED:
                    scale *= x_factors[i // OPERANDS].load(gl.SliceLayout(1, S2))[:, None]
                found = mma_v2(_operand(w, zero, W_LAYOUT, WARPS, FORMAT), value, nothing) * scale[:, :, None]
                if i % OPERANDS == 1:
                    products_up += found
                else:
                    products += found
            elif i % OPERANDS == 1:
                products_up = mma_v2(_operand(w, zero, W_LAYOUT, WARPS, FORMAT), value, products_up)
            else:
                products = mma_v2(_operand(w, zero, W_LAYOUT, WARPS, FORMAT), value, products)
            tile = first + (t + (i + SLOTS) // UNITS) * programs
            part = data + ((i + SLOTS) % OPERANDS) * (N * ROW_WORDS)
            step = ((i + SLOTS) % UNITS) // OPERANDS
            _fetch(own + slot, part, tile, step, column, place, N, ROW_WORDS, STEP_WORDS)
            slot = gl.where(slot == (SLOTS - 1) * SLOT, 0, slot + SLOT)
        # All columns of the instruction are alike.
        sums.index(t).store(gl.max(products, 2))
        if EPILOGUE == SILU_MUL:
            sums.index(TILES + t).store(gl.max(products_up, 2))
    all_sums = sums._reinterpret(gl.float32, [OPERANDS * TILES, WARPS, COLUMNS], DEEP)
    product = gl.sum(all_sums.slice(0, TILES, 0).load(SUMS), 1) * row_scale
    if EPILOGUE == ADD:
        product += before.to(gl.float32)
    if EPILOGUE == SILU_MUL:
        up = gl.sum(all_sums.slice(TILES, TILES, 0).load(SUMS), 1) * up_row_scale
        product = product / (1.0 + gl.exp(-product)) * up
    gl.store(out + out_column, product.to(out.dtype.element_ty), mask=exists)


def supports_quantized_persistent(
    weight: QuantizedWeight, rounding: Rounding | None, *, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether `quantized_persistent_linear` serves products with such a weight there."""
    return is_hopper(device) and dtype == torch.bfloat16 and _is_served(weight, rounding)


def _is_served(weight: QuantizedWeight, rounding: Rounding | None) -> bool:
    if weight.kind == "fp4" or weight.inner % 16 or (weight.kind != "int4" and weight.zeros is not None):
        return False
    if weight.kind == "int4" and (weight.inner % 32 or rounding is not None):
        return False
    group = weight.group_size
    if (
        rounding is not None
        and rounding.group_size is not None
        and (rounding.group_size, group) != (128, 128)
    ):
        return False
    return group is None or group % INNER.value == 0


def quantized_persistent_linear(
    *,
    x: torch.Tensor,
    weight: QuantizedWeight,
    rounding: Rounding | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
    out: torch.Tensor | None = None,
    tiles: PersistentTiles | None = None,
) -> torch.Tensor:
    """`round(norm(x)) @ dequantize(weight).T` of one row, then added to the residual, or gated; where
    `supports_quantized_persistent`.

    Args:
        x: [1, inner], bfloat16, contiguous.
        weight: [columns, inner].
        rounding: how `x`, or its norm rounded to bfloat16, is rounded; None: it isn't.
        norm_weight: [inner]: the weight of an RMS norm of `x` with `eps`; None for no norm.
        residual: [1, columns], contiguous: the product is added to it in place, and it is returned.
        silu_mul: `weight` is [2 * size, inner], gate and up, and `silu(gate) * up` returns.
        out: [1, columns] or with `silu_mul` [1, size], contiguous, to write into; None for a new one. Not
            with `residual`.
        tiles: how the kernel is run; None to choose.

    Returns:
        [1, columns], or with `silu_mul` [1, size]: fp32 sums rounded once to bfloat16.
    """
    rows, inner = x.shape
    if rows != 1:
        raise ValueError(f"x: expected one row, got {rows}")
    if not _is_served(weight, rounding):
        raise ValueError(f"weight: {weight.kind} in groups of {weight.size} is left to quantized_linear")
    columns = weight.rows // 2 if silu_mul else weight.rows
    if residual is not None:
        out = residual
    elif out is None:
        out = torch.empty((1, columns), dtype=x.dtype, device=x.device)
    if tiles is None:
        tiles = choose_persistent_tiles(weight)
    dependent = supports_dependent_launch(x.device)
    count = triton.cdiv(columns, COLUMNS.value)
    programs = min(count, tiles.programs * count_multiprocessors(x.device))
    programs = max(programs, triton.cdiv(count, MOST_TILES))
    each = triton.next_power_of_2(triton.cdiv(count, programs))
    limit = {"maxnreg": 65536 // (tiles.room * tiles.num_warps * 32)} if tiles.room > 1 else {}
    kernel = _quantized_persistent_linear_kernel[(programs,)](
        x=x,
        data=weight.data.view(torch.int32),
        scales=weight.scales,
        zeros=weight.zeros,
        norm_weight=norm_weight,
        residual=residual,
        out=out,
        eps=eps,
        N=columns,
        K=inner,
        FORMAT={"int4": INT4, "int8": INT8, "fp8": FP8}[weight.kind],
        GROUP=weight.group_size or 0,
        SHARED=weight.shared_rows % COLUMNS.value == 0,
        HAS_ZEROS=weight.zeros is not None,
        ROUND=AS_IS if rounding is None else ROUND_INT8 if rounding.kind == "int8" else ROUND_FP8,
        X_GROUPED=rounding is not None and rounding.group_size is not None,
        HAS_NORM=norm_weight is not None,
        EPILOGUE=SILU_MUL if silu_mul else ADD if residual is not None else PLAIN,
        DEPENDENT=dependent,
        TILES=each,
        RING=tiles.ring,
        num_warps=tiles.num_warps,
        **limit,
        **launch_options(dependent),
    )
    check_ring(kernel, tiles.ring)
    return out
