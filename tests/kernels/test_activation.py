from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.activation import silu_and_mul, silu_and_mul_reference


@pytest.mark.parametrize(("rows", "size"), [(1, 16), (3, 100), (2, 3072), (7, 1536)])
def test_silu_and_mul_agrees_with_torch(rows, size, dtype, device, tolerance, generator):
    gate_up = (3 * torch.randn(rows, 2 * size, generator=generator, device=device)).to(dtype)
    actual = silu_and_mul(gate_up=gate_up)
    torch.testing.assert_close(actual, silu_and_mul_reference(gate_up), **tolerance)
    gate, up = gate_up.double()[:, :size], gate_up.double()[:, size:]
    torch.testing.assert_close(actual, (gate / (1 + torch.exp(-gate)) * up).to(dtype), **tolerance)
