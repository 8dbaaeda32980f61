"""SiLU of the gate times the up projection."""

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
def _silu_and_mul_kernel(gate_up, out, SIZE: tl.constexpr, DEPENDENT: tl.constexpr, BLOCK: tl.constexpr):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * SIZE + columns, result.to(out.dtype.element_ty), mask=mask)


def silu_and_mul(*, gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`, computed in fp32.

    Args:
        gate_up: [rows, 2 * size], contiguous, float: the gate in the first half of a row, up in the second.

    Returns:
        [rows, size], dtype of `gate_up`.
    """
    rows, double = gate_up.shape
    size = double // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    dependent = supports_dependent_launch(gate_up.device)
    block = min(1024, triton.next_power_of_2(size))
    _silu_and_mul_kernel[(rows, triton.cdiv(size, block))](
        gate_up=gate_up,
        out=out,
        SIZE=size,
        DEPENDENT=dependent,
        BLOCK=block,
        num_warps=4,
        **launch_options(dependent),
    )
    return out


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu_and_mul` in torch."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
