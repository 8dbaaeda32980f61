"""An activation of the gate times the up projection."""

from __future__ import annotations

from collections.abc import Sequence

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


ACTIVATIONS: Sequence[str] = ("silu", "gelu_tanh", "gelu")
"""What `gated` applies to the gate: SiLU, GELU by its approximation with tanh, or GELU by the error function.
"""


@triton.jit
def activate(g, ACTIVATION: tl.constexpr):
    """One of `ACTIVATIONS` of fp32 values."""
    if ACTIVATION == "silu":
        return g * tl.sigmoid(g)
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(y)) = sigmoid(2y)
        return g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    else:
        return 0.5 * g * (1.0 + tl.erf(0.7071067811865476 * g))


@triton.jit
def _gated_kernel(
    gate,
    up,
    out,
    stride_gate,
    stride_up,
    SIZE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    g = tl.load(gate + row * stride_gate + columns, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, (activate(g, ACTIVATION) * u).to(out.dtype.element_ty), mask=mask)


def gated(*, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """`activation(gate) * up`, computed in fp32.

    Args:
        gate, up: [rows, size], float; rows may be strided, the last dimension is contiguous.
        activation: one of `ACTIVATIONS`.

    Returns:
        [rows, size], contiguous, dtype of `gate`.
    """
    rows, size = gate.shape
    out = torch.empty((rows, size), dtype=gate.dtype, device=gate.device)
    dependent = supports_dependent_launch(gate.device)
    block = min(1024, triton.next_power_of_2(size))
    _gated_kernel[(rows, triton.cdiv(size, block))](
        gate=gate,
        up=up,
        out=out,
        stride_gate=gate.stride(0),
        stride_up=up.stride(0),
        SIZE=size,
        ACTIVATION=activation,
        DEPENDENT=dependent,
        BLOCK=block,
        num_warps=4,
        **launch_options(dependent),
    )
    return out


def gated_reference(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """`gated` in torch."""
    g = gate.float()
    if activation == "silu":
        active = torch.nn.functional.silu(g)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        active = torch.nn.functional.gelu(g, approximate=approximate)
    return (active * up.float()).to(gate.dtype)


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu_and_mul` in torch."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
