"""Products with quantized weights by kernels: which kernel for how many rows, both runners."""

from __future__ import annotations

import torch
from torch.nn import functional

from dodona.kernels.linear.eight_bit_linear import eight_bit_linear, supports_eight_bit_linear
from dodona.kernels.linear.quantized_linear import quantized_linear, supports_quantized_linear, widen
from dodona.kernels.linear.quantized_persistent_linear import (
    quantized_persistent_linear,
    supports_quantized_persistent,
)
from dodona.kernels.linear.quantized_rows_linear import quantized_rows_linear, supports_quantized_rows
from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.kernels.linear.round_activations import Rounding, round_activations

MAX_FUSED_ROWS = 64
"""Rows from which on it is faster to widen the whole weight first; as measured on an H200."""


def quantized_product(
    *, x: torch.Tensor, weight: QuantizedWeight, rounding: Rounding | None, persistent: bool = True
) -> torch.Tensor:
    """`x @ dequantize(weight).T`, [rows, out], of `x` [rows, in], which is rounded first where `rounding`
    says so.

    persistent: whether one row may be computed by programs that stay on their multiprocessor.
    """
    rows, device, dtype = x.shape[0], x.device, x.dtype
    if (
        persistent
        and rows == 1
        and supports_quantized_persistent(weight, rounding, device=device, dtype=dtype)
    ):
        return quantized_persistent_linear(x=x, weight=weight, rounding=rounding)
    if rounding is not None and supports_eight_bit_linear(weight, rounding, device=device, dtype=dtype):
        narrow = round_activations(x=x, rounding=rounding, narrow=True)
        return eight_bit_linear(x=narrow, weight=weight, dtype=dtype)
    if rounding is None and supports_quantized_rows(weight, rows, device=device, dtype=dtype):
        return quantized_rows_linear(x=x, weight=weight)
    given = x if rounding is None else round_activations(x=x, rounding=rounding)
    if (rows <= MAX_FUSED_ROWS or dtype == torch.float32) and supports_quantized_linear(weight):
        return quantized_linear(x=given, weight=weight)
    values = given if isinstance(given, torch.Tensor) else given.widened()
    return functional.linear(values, widen(weight, dtype))
