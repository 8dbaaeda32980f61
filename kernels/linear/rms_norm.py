"""Root-mean-square normalisation of rows, alone or after adding the residual stream."""

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
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    stride_x,
    eps,
    HIDDEN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    h = tl.load(x + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_row = residual + row * HIDDEN + columns
        h += tl.load(residual_row, mask=mask, other=0.0).to(tl.float32)
        # What later layers see of the sum is its rounded value, so the norm must see that one too.
        rounded = h.to(residual.dtype.element_ty)
        tl.store(residual_row, rounded, mask=mask)
        h = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(h * h, axis=0) / HIDDEN + eps)
    tl.store(out + row * HIDDEN + columns, (h * inverse * w).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_rows_kernel(
    x,
    weight,
    out,
    rows,
    stride_x,
    eps,
    offset,
    HIDDEN: tl.constexpr,
    DEPENDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (columns < HIDDEN)
    w = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32) + offset
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    h = tl.load(x + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(h * h, axis=1) / HIDDEN + eps)[:, None]
    tl.store(out + row * HIDDEN + columns, (h * inverse * w).to(out.dtype.element_ty), mask=mask)


ROWS_ELEMENTS = 2048
"""Elements that a program normalises: several rows where they are short."""


def rms_norm_rows(*, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """`x / sqrt(mean(x², last dim) + eps) * (weight + offset)`, computed in fp32, for rows of any length.

    Args:
        x: [rows, hidden], float; rows may be strided, the last dimension is contiguous.
        weight: [hidden], float.
        eps: added to the mean square.
        offset: added to the weight.

    Returns:
        [rows, hidden], contiguous, dtype of `x`.
    """
    rows, hidden_size = x.shape
    out = torch.empty((rows, hidden_size), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(hidden_size)
    per_program = max(1, ROWS_ELEMENTS // block)
    dependent = supports_dependent_launch(x.device)
    _rms_norm_rows_kernel[(triton.cdiv(rows, per_program),)](
        x=x,
        weight=weight,
        out=out,
        rows=rows,
        stride_x=x.stride(0),
        eps=eps,
        offset=offset,
        HIDDEN=hidden_size,
        DEPENDENT=dependent,
        ROWS=per_program,
        BLOCK=block,
        num_warps=_num_warps(max(hidden_size, ROWS_ELEMENTS)),
        **launch_options(dependent),
    )
    return out


def _num_warps(hidden_size: int) -> int:
    return 4 if hidden_size <= 2048 else 8 if hidden_size <= 8192 else 16


def rms_norm(*, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x², last dim) + eps) * weight`, computed in fp32.

    Args:
        x: [rows, hidden], float; rows may be strided, the last dimension is contiguous.
        weight: [hidden], float.
        eps: added to the mean square.

    Returns:
        [rows, hidden], dtype of `x`.
    """
    rows, hidden_size = x.shape
    out = torch.empty((rows, hidden_size), dtype=x.dtype, device=x.device)
    dependent = supports_dependent_launch(x.device)
    _rms_norm_kernel[(rows,)](
        x=x,
        residual=x,
        weight=weight,
        out=out,
        stride_x=x.stride(0),
        eps=eps,
        HIDDEN=hidden_size,
        HAS_RESIDUAL=False,
        DEPENDENT=dependent,
        BLOCK=triton.next_power_of_2(hidden_size),
        num_warps=_num_warps(hidden_size),
        **launch_options(dependent),
    )
    return out


def add_rms_norm(
    *, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add `x` to `residual` in place, and return the normalised sum.

    Args:
        x: [rows, hidden], float; rows may be strided, the last dimension is contiguous.
        residual: [rows, hidden], contiguous; overwritten by `x + residual`, rounded to its dtype.
        weight: [hidden], float.
        eps: added to the mean square.

    Returns:
        [rows, hidden], dtype of `x`: the norm of the rounded sum.
    """
    rows, hidden_size = x.shape
    out = torch.empty((rows, hidden_size), dtype=x.dtype, device=x.device)
    dependent = supports_dependent_launch(x.device)
    _rms_norm_kernel[(rows,)](
        x=x,
        residual=residual,
        weight=weight,
        out=out,
        stride_x=x.stride(0),
        eps=eps,
        HIDDEN=hidden_size,
        HAS_RESIDUAL=True,
        DEPENDENT=dependent,
        BLOCK=triton.next_power_of_2(hidden_size),
        num_warps=_num_warps(hidden_size),
        **launch_options(dependent),
    )
    return out


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` in torch."""
    h = x.float()
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_rms_norm` in torch: (normalised, new residual), nothing in place."""
    total = (x.float() + residual.float()).to(residual.dtype)
    return rms_norm_reference(total, weight, eps).to(x.dtype), total
