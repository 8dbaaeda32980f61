"""What adapters add to a layer's products, beside a loop over tokens in fp64."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.adapters import add_adapters, add_adapters_reference


@pytest.mark.parametrize(
    ("tokens", "inner", "columns", "rank", "num_slots"),
    [(1, 24, 16, 4, 1), (5, 67, 70, 5, 3), (3, 2100, 33, 8, 2), (2, 40, 17000, 1, 2), (8, 130, 5, 160, 2)],
)
def test_each_token_has_its_adapter(
    device, dtype, tolerance, generator, tokens, inner, columns, rank, num_slots
):
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    out, x = randn(tokens, columns), randn(tokens, inner)
    a, b = randn(num_slots * rank, inner) / inner**0.5, randn(columns, num_slots * rank) / rank**0.5
    slots = torch.arange(tokens, device=device, dtype=torch.int32) % (num_slots + 1) - 1
    slots = slots.flip(0)
    expected = add_adapters_reference(out, x, a, b, slots, rank)
    without = out[slots < 0].clone()
    add_adapters(out=out, x=x, a=a, b=b, slots=slots, rank=rank)
    torch.testing.assert_close(out, expected, **tolerance)
    assert torch.equal(out[slots < 0], without)
