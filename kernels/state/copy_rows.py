"""Copies of rows of hidden states, for a draft head."""

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
    source, index, target, stride_target, SIZE: tl.constexpr, DEPENDENT: tl.constexpr, BLOCK: tl.constexpr
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    origin = row
    if index is not None:
        origin = tl.load(index + row).to(tl.int64)
    value = tl.load(source + origin * SIZE + column, mask=inside)
    tl.store(target + row * stride_target + column, value, mask=inside)


def copy_rows(*, source: torch.Tensor, target: torch.Tensor, index: torch.Tensor | None = None) -> None:
    """`target.copy_(source)`, or of `source[index]`, between kernels that start before their inputs are
    there: the next one begins to read its weights meanwhile. It must not read `target` before it waits.

    Args:
        source: [rows, size], contiguous; any number of rows where there is an `index`.
        target: [rows, size], dtype of `source`; the elements of a row are contiguous.
        index: [rows] int32 or int64: the row of `source` for each; None for all, in order.
    """
    rows, size = target.shape
    block = min(1024, triton.next_power_of_2(size))
    dependent = supports_dependent_launch(source.device)
    if rows:
        _copy_rows_kernel[(rows, triton.cdiv(size, block))](
            source, index, target, target.stride(0), SIZE=size, DEPENDENT=dependent, BLOCK=block, num_warps=4,
            **launch_options(dependent),
        )  # fmt: skip
