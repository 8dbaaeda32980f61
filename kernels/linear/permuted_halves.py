"""Activations as float16, in the order in which a tensor core's threads read quantized weights.

A thread reads 16 bytes of a row of the weight at a time: 16 or 32 inner elements. The matrix instruction
takes pairs of neighbours from it, so that in its order pairs of four threads alternate. Both operands may be
permuted alike along the inner dimension, and here it is the activations that are: within 128 elements

    8 bits:  place 64 H + 16 w + 8 h + 2 j + e  has element  64 H + 16 j + 4 w + 2 h + e
    4 bits:  place        32 w + 8 p + 2 j + e  has element         32 j + 8 w + 2 p + e

of thread j = 0 … 3. Rows are scaled by a power of two, so that the largest is just below 2**15.
"""

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

BLOCK = 128
"""Elements that are permuted among each other."""


@dataclass(frozen=True, slots=True, eq=False)
class PermutedHalves:
    """`values * factors` are the activations."""

    values: torch.Tensor
    """[rows, inner] float16, permuted."""
    factors: torch.Tensor
    """[rows] fp32: powers of two."""


@triton.jit
def _permuted_halves_kernel(
    x,
    values,
    factors,
    stride_x,
    INNER: tl.constexpr,
    NIBBLES: tl.constexpr,
    DEPENDENT: tl.constexpr,
    SIZE: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    place = tl.arange(0, SIZE)
    exists = place < INNER
    thread = (place // 2) % 4
    pair = (place // 8) % 16
    if NIBBLES:
        element = 32 * thread + 2 * pair
    else:
        element = 64 * (pair // 8) + 16 * thread + 2 * (pair % 8)
    element += place // 128 * 128 + place % 2
    if DEPENDENT:
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    h = tl.load(x + row * stride_x + element, mask=exists, other=0.0).to(tl.float32)
    top = tl.max(tl.abs(h), axis=0)
    exponent = tl.minimum(268 - (top.to(tl.int32, bitcast=True) >> 23), 253)
    h *= (exponent << 23).to(tl.float32, bitcast=True)
    tl.store(values + row * INNER + place, h.to(tl.float16), mask=exists)
    tl.store(factors + row, ((254 - exponent) << 23).to(tl.float32, bitcast=True))


def permuted_halves(*, x: torch.Tensor, nibbles: bool) -> PermutedHalves:
    """`x` as float16 in the order of 4-bit weights, or of 8-bit ones.

    Args:
        x: [rows, inner], float; `inner` is a multiple of `BLOCK`; rows may be strided, the last dimension is
            contiguous. What is below 2**-29 of a row's largest element loses bits.
        nibbles: for 4-bit weights.
    """
    rows, inner = x.shape
    if inner % BLOCK:
        raise ValueError(f"x: expected rows of a multiple of {BLOCK} elements, got {inner}")
    values = torch.empty((rows, inner), dtype=torch.float16, device=x.device)
    factors = torch.empty(rows, dtype=torch.float32, device=x.device)
    dependent = supports_dependent_launch(x.device)
    size = triton.next_power_of_2(inner)
    _permuted_halves_kernel[(rows,)](
        x=x,
        values=values,
        factors=factors,
        stride_x=x.stride(0),
        INNER=inner,
        NIBBLES=nibbles,
        DEPENDENT=dependent,
        SIZE=size,
        num_warps=8 if size <= 4096 else 16,
        **launch_options(dependent),
    )
    return PermutedHalves(values, factors)


def permuted_halves_reference(x: torch.Tensor, nibbles: bool) -> torch.Tensor:
    """`values * factors` of `permuted_halves` in torch, in fp32."""
    rows, inner = x.shape
    if nibbles:
        parts = x.float().reshape(rows, inner // BLOCK, 4, 4, 4, 2)  # j, w, p, e
        return parts.permute(0, 1, 3, 4, 2, 5).reshape(rows, inner)
    parts = x.float().reshape(rows, inner // 64, 4, 4, 2, 2)  # j, w, h, e
    return parts.permute(0, 1, 3, 4, 2, 5).reshape(rows, inner)
