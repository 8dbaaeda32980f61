"""Several products of one row in one launch, beside torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.single_token_linear import Tiles
from dodona.kernels.linear.single_token_linears import single_token_linears, single_token_linears_reference


@pytest.mark.parametrize("tiles", [None, Tiles(n=8, k=32, num_warps=4, ahead=2)], ids=["", "tiles"])
@pytest.mark.parametrize(
    ("columns", "inner"), [((24, 8, 9), 64), ((5, 40), 70), ((3, 1, 2), 33)], ids=["three", "two", "odd"]
)
def test_products(device, dtype, tolerance, generator, columns, inner, tiles):
    def randn(*shape):
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    x, weights = randn(1, inner), [randn(n, inner) / inner**0.5 for n in columns]
    biases = [randn(n) if i % 2 == 0 else None for i, n in enumerate(columns)]
    found = single_token_linears(x=x, weights=weights, biases=biases, tiles=tiles)
    torch.testing.assert_close(found, single_token_linears_reference(x, weights, biases), **tolerance)
