"""Products with a quantized weight, of any number of rows.

    out = x @ dequantize(weight).T

Each program widens the tiles of the weight that it needs, to numbers that the type of `x` holds exactly, and
multiplies them on tensor cores; scales come in behind, in fp32, once a group or at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.linear.quantized_weight import INT4_ZERO, QuantizedWeight, dequantize
from dodona.kernels.linear.round_activations import RoundedActivations


@triton.jit
def _quantized_linear_kernel(
    x,
    x_scales,
    data,
    scales,
    zeros,
    out,
    rows,
    stride_x,
    N: tl.constexpr,
    K: tl.constexpr,
    NIBBLES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    ZERO: tl.constexpr,
    X_SCALED: tl.constexpr,
    X_GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of `BLOCK_K` lies in one group of `GROUP` inner elements, the groups of `x` among them."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row_exists = (m < rows)[:, None]
    column_exists = n < N
    x_tile = x + m.to(tl.int64)[:, None] * stride_x + k[None, :]
    wide_n = n.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        values = tl.load(x_tile + start, mask=row_exists & (start + k < K)[None, :], other=0.0)
        if NIBBLES:
            word = start // 8 + tl.arange(0, BLOCK_K // 8)
            inside = column_exists[:, None] & (word < K // 8)[None, :]
            words = tl.load(data + wide_n[:, None] * (K // 8) + word[None, :], mask=inside, other=0)
            place = tl.arange(0, 8)
            shift = 4 * (place // 2) + 16 * (place % 2)
            numbers = (words[:, :, None] >> shift[None, None, :]) & 15
            w = tl.reshape(numbers, (BLOCK_N, BLOCK_K))
        else:
            inside = column_exists[:, None] & (start + k < K)[None, :]
            w = tl.load(data + wide_n[:, None] * K + (start + k)[None, :], mask=inside, other=0.0)
        group = wide_n * GROUPS + start // GROUP
        if HAS_ZEROS:
            zero = tl.load(zeros + group, mask=column_exists, other=0).to(tl.int32)
            w = w.to(tl.int32) - zero[:, None]
        elif NIBBLES:
            w = w - ZERO
        if w.dtype != values.dtype:
            w = w.to(tl.float32).to(values.dtype)
        part = tl.dot(values, tl.trans(w), input_precision="ieee")
        if GROUPS > 1:
            part *= tl.load(scales + group, mask=column_exists, other=0.0).to(tl.float32)[None, :]
        if X_GROUPS > 1:
            part *= tl.load(x_scales + m * X_GROUPS + start // GROUP, mask=m < rows, other=0.0)[:, None]
        total += part
    if GROUPS == 1:
        total *= tl.load(scales + n, mask=column_exists, other=0.0).to(tl.float32)[None, :]
    if X_SCALED and X_GROUPS == 1:
        total *= tl.load(x_scales + m, mask=m < rows, other=0.0)[:, None]
    target = out + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=row_exists & column_exists[None, :])


def supports_quantized_linear(weight: QuantizedWeight) -> bool:
    """Whether `quantized_linear` serves a weight: its groups, if it has such, have a multiple of 16
    elements."""
    return weight.kind != "fp4" and (weight.scales.shape[1] == 1 or weight.size % 16 == 0)


def quantized_linear(
    *, x: torch.Tensor | RoundedActivations, weight: QuantizedWeight, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`x @ dequantize(weight).T`.

    Args:
        x: [rows, inner], float; rows may be strided, the last dimension is contiguous. Or rounded, and then
            in one group a row, or in the weight's groups.
        weight: [columns, inner]; as `supports_quantized_linear` says.
        out: [rows, columns], contiguous, to write into; None for a new one.

    Returns:
        [rows, columns]: fp32 sums, rounded once to the dtype of `x`.
    """
    rounded = x if isinstance(x, RoundedActivations) else None
    values = x.values if isinstance(x, RoundedActivations) else x
    rows, inner = values.shape
    columns, groups = weight.scales.shape
    x_groups = 1 if rounded is None else rounded.scales.shape[1]
    if not supports_quantized_linear(weight):
        raise ValueError(f"weight: {weight.kind} in groups of {weight.size} is not served")
    size = weight.size if groups > 1 else (rounded.group_size or inner) if rounded is not None else inner
    if x_groups > 1 and groups > 1 and rounded is not None and rounded.group_size != weight.group_size:
        raise ValueError(f"x: expected groups of {weight.group_size}, got {rounded.group_size}")
    if out is None:
        out = torch.empty((rows, columns), dtype=values.dtype, device=values.device)
    block_m, block_n, block_k, num_warps, num_stages = _choose_blocks(rows, values.dtype)
    if groups > 1 or x_groups > 1:
        block_k = min(block_k, size & -size)  # the largest power of two in it
    _quantized_linear_kernel[(triton.cdiv(columns, block_n), triton.cdiv(rows, block_m))](
        x=values,
        x_scales=None if rounded is None else rounded.scales,
        data=weight.data,
        scales=weight.scales,
        zeros=weight.zeros,
        out=out,
        rows=rows,
        stride_x=values.stride(0),
        N=columns,
        K=inner,
        NIBBLES=weight.kind == "int4",
        GROUP=size,
        GROUPS=groups,
        HAS_ZEROS=weight.zeros is not None,
        ZERO=INT4_ZERO,
        X_SCALED=rounded is not None,
        X_GROUPS=x_groups,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out


def _choose_blocks(rows: int, dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """Rows, columns and inner elements of a tile, warps, stages."""
    if dtype == torch.float32:
        return 16, 32, 32, 4, 2
    if rows <= 16:
        return 16, 32, 128, 4, 4
    if rows <= 32:
        return 32, 32, 128, 4, 4
    if rows <= 64:
        return 64, 64, 64, 4, 4
    return 128, 128, 64, 8, 3


@triton.jit
def _widen_kernel(
    data,
    scales,
    zeros,
    out,
    INNER: tl.constexpr,
    NIBBLES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    ZERO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = k < INNER
    group = row * GROUPS + k // GROUP
    if NIBBLES:
        place = k % 8
        words = tl.load(data + row * (INNER // 8) + k // 8, mask=exists, other=0)
        value = ((words >> (4 * (place // 2) + 16 * (place % 2))) & 15).to(tl.float32)
    else:
        value = tl.load(data + row * INNER + k, mask=exists, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        value -= tl.load(zeros + group, mask=exists, other=0).to(tl.float32)
    else:
        value -= ZERO
    value *= tl.load(scales + group, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + row * INNER + k, value.to(out.dtype.element_ty), mask=exists)


def widen(weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """`dequantize(weight, dtype)`, [rows, inner], of int8, fp8 or int4, in one launch."""
    rows, inner = weight.rows, weight.inner
    out = torch.empty((rows, inner), dtype=dtype, device=weight.data.device)
    block = min(2048, triton.next_power_of_2(inner))
    _widen_kernel[(rows, triton.cdiv(inner, block))](
        data=weight.data,
        scales=weight.scales,
        zeros=weight.zeros,
        out=out,
        INNER=inner,
        NIBBLES=weight.kind == "int4",
        GROUP=weight.size,
        GROUPS=weight.scales.shape[1],
        HAS_ZEROS=weight.zeros is not None,
        ZERO=float(INT4_ZERO) if weight.kind == "int4" else 0.0,
        BLOCK=block,
        num_warps=4,
    )
    return out


def quantized_linear_reference(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """`quantized_linear` of an `x` that is not rounded, in torch and fp32: in the dtype of `x`."""
    return (x.float() @ dequantize(weight).T).to(x.dtype)
