"""Copies of rows into a part of wider ones: hidden states that a draft head looks at."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)


@triton.jit
def _copy_rows_kernel(
    source, target, stride_target, SIZE: tl.constexpr, DEPENDENT: tl.constexpr, BLOCK: tl.constexpr
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    value = tl.load(source + row * SIZE + column, mask=inside)
    tl.store(target + row * stride_target + column, value, mask=inside)


def copy_rows(*, source: torch.Tensor, target: torch.Tensor) -> None:
    """`target.copy_(source)`, between kernels that start before their inputs are there: the next one begins
    to read its weights meanwhile. It must not read `target` before it waits.

    Args:
        source: [rows, size], contiguous.
        target: [rows, size], dtype of `source`; the elements of a row are contiguous.
    """
    rows, size = source.shape
    block = min(1024, triton.next_power_of_2(size))
    dependent = supports_dependent_launch(source.device)
    if rows:
        _copy_rows_kernel[(rows, triton.cdiv(size, block))](
            source, target, target.stride(0), SIZE=size, DEPENDENT=dependent, BLOCK=block, num_warps=4,
            **launch_options(dependent),
        )  # fmt: skip
