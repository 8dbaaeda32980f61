"""Products of rounded activations with a weight of the same numbers, of any number of rows.

    out = (x.values @ weight.data.T) * scales

Tensor cores multiply the 8-bit numbers themselves: nothing is widened, and a product costs half of what it
costs in bfloat16. int8 is added up exactly, E4M3 in fp32, tile by tile: what the instruction adds up by
itself, with fewer bits, are `BLOCK_K` products. Rows of the weight are the rows of the matrix instruction, so
that few tokens fill few columns. Many rows of E4M3 are left to `torch._scaled_mm`, which does the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn.functional import pad

from dodona.kernels.devices import is_hopper
from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.kernels.linear.round_activations import RoundedActivations, Rounding

BLOCK_K = 128
MOST_ROWS = (64, 32)
"""Rows up to which the kernel is faster than torch's, without and with groups; as measured on an H200."""


@triton.jit
def _eight_bit_linear_kernel(
    x,
    x_scales,
    data,
    scales,
    out,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`GROUPS`: of `BLOCK_K` inner elements, and then the rows of a tile of the weight have the same scales;
    1: rows have a scale each."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    row_exists = m < rows
    column_exists = n < N
    w_tile = data + n.to(tl.int64)[:, None] * K + k[None, :]
    x_tile = x + m.to(tl.int64)[:, None] * K + k[None, :]
    WHOLE: tl.constexpr = x.dtype.element_ty == tl.int8
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.int32 if WHOLE else tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = (start + k < K)[None, :]
        w = tl.load(w_tile + start, mask=column_exists[:, None] & inside, other=0.0)
        values = tl.load(x_tile + start, mask=row_exists[:, None] & inside, other=0.0)
        if WHOLE:
            total = tl.dot(w, tl.trans(values), total, out_dtype=tl.int32)
        else:
            part = tl.dot(w, tl.trans(values))
            if GROUPS > 1:
                group = start // BLOCK_K
                factor = tl.load(scales + tl.program_id(0).to(tl.int64) * BLOCK_N * GROUPS + group)
                x_factor = tl.load(x_scales + m * GROUPS + group, mask=row_exists, other=0.0)
                part *= (factor * x_factor)[None, :]
            total += part
    product = total.to(tl.float32)
    if GROUPS == 1:
        product *= tl.load(scales + n, mask=column_exists, other=0.0).to(tl.float32)[:, None]
        product *= tl.load(x_scales + m, mask=row_exists, other=0.0)[None, :]
    target = out + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(target, product.to(out.dtype.element_ty), mask=row_exists[None, :] & column_exists[:, None])


def supports_eight_bit_linear(
    weight: QuantizedWeight, rounding: Rounding | None, *, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether `eight_bit_linear` serves products with such a weight there, of inputs in `dtype` rounded so.
    Not in fp32, where results should be more exact."""
    if rounding is None or rounding.kind != weight.kind or weight.zeros is not None or weight.inner % 16:
        return False
    if not is_hopper(device) or dtype == torch.float32:
        return False
    if weight.group_size is None:
        return rounding.group_size is None
    return (
        weight.kind == "fp8"
        and weight.group_size == rounding.group_size == BLOCK_K
        and weight.shared_rows % 128 == 0
    )


def eight_bit_linear(*, x: RoundedActivations, weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """`(x.values * x.scales) @ dequantize(weight).T`, where `supports_eight_bit_linear`.

    Args:
        x: [rows, inner], in numbers of the weight's own type, contiguous.
        weight: [columns, inner].
        dtype: of the result, [rows, columns].
    """
    rows, inner = x.values.shape
    if dtype == torch.bfloat16 and _is_left_to_torch(weight, rows):
        return _scaled_mm(x, weight)
    out = torch.empty((rows, weight.rows), dtype=dtype, device=x.values.device)
    block_n, block_m, num_warps, num_stages = _choose_blocks(rows)
    _eight_bit_linear_kernel[(triton.cdiv(weight.rows, block_n), triton.cdiv(rows, block_m))](
        x=x.values,
        x_scales=x.scales,
        data=weight.data,
        scales=weight.scales,
        out=out,
        rows=rows,
        N=weight.rows,
        K=inner,
        GROUPS=weight.scales.shape[1],
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=BLOCK_K,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out


def _is_left_to_torch(weight: QuantizedWeight, rows: int) -> bool:
    if weight.kind != "fp8" or weight.rows % 16 or rows <= MOST_ROWS[weight.group_size is not None]:
        return False
    return is_hopper(weight.data.device) and (weight.group_size is None or weight.inner % (4 * BLOCK_K) == 0)


def _scaled_mm(x: RoundedActivations, weight: QuantizedWeight) -> torch.Tensor:
    values, x_factors, factors = x.values, x.scales, weight.scales
    rows = len(values)
    if weight.group_size is not None:
        # Rows by 16, scales of a group side by side, and one scale for a block.
        more = -rows % 16
        if more:
            values, x_factors = pad(values.view(torch.int8), (0, 0, 0, more)), pad(x_factors, (0, 0, 0, more))
        x_factors, factors = x_factors.T.contiguous().T, factors[::BLOCK_K].contiguous()
    found = torch._scaled_mm(
        values.view(torch.float8_e4m3fn),
        weight.data.T,
        scale_a=x_factors,
        scale_b=factors.T,
        out_dtype=torch.bfloat16,
    )
    return found[:rows]


def _choose_blocks(rows: int) -> tuple[int, int, int, int]:
    """Columns and rows of a tile, warps, stages; as measured on an H200."""
    if rows <= 16:
        return 64, 16, 4, 6
    if rows <= 32:
        return 64, 32, 4, 6
    if rows <= 64:
        return 64, 64, 4, 5
    return 128, 128, 8, 4
