"""Activations rounded to int8 or E4M3 numbers, after an RMS norm where wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.linear.quantized_weight import round_rows
from dodona.kernels.linear.rms_norm import rms_norm_reference

_EPS = tl.constexpr(1.1920929e-07)  # of fp32: the scale of zeros
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no bits behind the point


@dataclass(frozen=True, slots=True)
class Rounding:
    """To which numbers a product's input is rounded; scales come from the input."""

    kind: Literal["int8", "fp8"]
    group_size: int | None = None
    """Inner elements that share a scale; None: one scale a row."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundedActivations:
    """`values * scales` are the activations."""

    values: torch.Tensor
    """[rows, inner]: whole numbers, or E4M3's, in the type of the input, which holds them exactly, or in
    their own."""
    scales: torch.Tensor
    """[rows, groups], fp32."""
    group_size: int | None = None
    """Inner elements per scale; None: a row has one."""

    def widened(self) -> torch.Tensor:
        """[rows, inner]: the activations, rounded to the type of `values`, which is the input's."""
        inner = self.values.shape[1]
        scales = self.scales
        if self.group_size is not None:
            scales = scales.repeat_interleave(self.group_size, dim=1)[:, :inner]
        return (self.values * scales).to(self.values.dtype)


@triton.jit
def _round_to_e4m3(x):
    """The nearest E4M3 number of each |x| <= 448, ties to even; in fp32."""
    size = tl.abs(x)
    # A power of two not above x has its exponent's bits; below 2**-6 E4M3 has even steps.
    power = (size.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    rounder = tl.maximum(power, 0.015625) * (0.125 * _ROUNDER)
    rounded = (size + rounder) - rounder
    return tl.where(x < 0, -rounded, rounded)


@triton.jit
def _round_activations_kernel(
    x,
    norm_weight,
    values,
    scales,
    stride_x,
    eps,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    INT8: tl.constexpr,
    HAS_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    place = tl.arange(0, BLOCK_GROUP)[None, :]
    column = group[:, None] * GROUP + place
    exists = (place < GROUP) & (column < INNER)
    if HAS_NORM:
        w = tl.load(norm_weight + column, mask=exists, other=0.0).to(tl.float32)
    if DEPENDENT:
        wait_for_inputs()
    h = tl.load(x + row * stride_x + column, mask=exists, other=0.0).to(tl.float32)
    if HAS_NORM:
        inverse = tl.rsqrt(tl.sum(tl.sum(h * h, axis=1), axis=0) / INNER + eps)
        h = (h * inverse * w).to(x.dtype.element_ty).to(tl.float32)
    scale = tl.max(tl.abs(h), axis=1) / (127.5 if INT8 else 448.0)
    scale = tl.where(scale == 0, _EPS, scale)
    steps = tl.div_rn(h, tl.broadcast_to(scale[:, None], h.shape))
    if INT8:
        rounded = tl.minimum((steps + _ROUNDER) - _ROUNDER, 127.0)
    else:
        rounded = _round_to_e4m3(tl.minimum(tl.maximum(steps, -448.0), 448.0))
    tl.store(values + row * INNER + column, rounded.to(values.dtype.element_ty), mask=exists)
    tl.store(scales + row * GROUPS + group, scale, mask=group < GROUPS)


def round_activations(
    *,
    x: torch.Tensor,
    rounding: Rounding,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    narrow: bool = False,
) -> RoundedActivations:
    """`x`, or its RMS norm rounded to the type of `x`, as numbers of `rounding.kind` and scales.

    Args:
        x: [rows, inner], float; rows may be strided, the last dimension is contiguous.
        rounding: the numbers, and what shares a scale.
        norm_weight: [inner]: the weight of an RMS norm of `x` with `eps`; None for no norm.
        eps: added to the mean square.
        narrow: the numbers return in eight bits each; else in the type of `x`.
    """
    rows, inner = x.shape
    own_type = torch.int8 if rounding.kind == "int8" else torch.float8_e4m3fn
    size = rounding.group_size or inner
    groups = triton.cdiv(inner, size)
    values = torch.empty((rows, inner), dtype=own_type if narrow else x.dtype, device=x.device)
    scales = torch.empty((rows, groups), dtype=torch.float32, device=x.device)
    dependent = supports_dependent_launch(x.device)
    block_groups, block_group = triton.next_power_of_2(groups), triton.next_power_of_2(size)
    _round_activations_kernel[(rows,)](
        x=x,
        norm_weight=norm_weight,
        values=values,
        scales=scales,
        stride_x=x.stride(0),
        eps=eps,
        INNER=inner,
        GROUP=size,
        GROUPS=groups,
        INT8=rounding.kind == "int8",
        HAS_NORM=norm_weight is not None,
        DEPENDENT=dependent,
        BLOCK_GROUPS=block_groups,
        BLOCK_GROUP=block_group,
        num_warps=4
        if block_groups * block_group <= 2048
        else 8
        if block_groups * block_group <= 8192
        else 16,
        **launch_options(dependent),
    )
    return RoundedActivations(values, scales, rounding.group_size)


def round_activations_reference(
    x: torch.Tensor, rounding: Rounding, norm_weight: torch.Tensor | None = None, eps: float = 0.0
) -> torch.Tensor:
    """`values * scales` of `round_activations`, in torch and fp32: [rows, inner]."""
    if norm_weight is not None:
        x = rms_norm_reference(x, norm_weight, eps)
    return round_rows(x, kind=rounding.kind, group_size=rounding.group_size)
