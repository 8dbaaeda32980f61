"""One-row linear layers with norm, residual and gate against torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.single_token_linear import Tiles, fused_linear_reference, single_token_linear


@pytest.mark.parametrize(("columns", "inner"), [(48, 64), (100, 40), (2056, 96), (12, 5000)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("epilogue", ["plain", "residual", "silu_mul"])
def test_agrees_with_torch(columns, inner, norm, epilogue, dtype, device, tolerance, generator):
    def random(*shape):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x, weight = random(1, inner), random(columns * (2 if epilogue == "silu_mul" else 1), inner) / inner**0.5
    residual = random(1, columns) if epilogue == "residual" else None
    case = {
        "x": x, "weight": weight, "norm_weight": random(inner) if norm else None, "eps": 1e-5,
        "silu_mul": epilogue == "silu_mul",
    }  # fmt: skip
    expected = fused_linear_reference(**case, residual=residual)
    actual = single_token_linear(**case, residual=residual)
    torch.testing.assert_close(actual, expected, **tolerance)
    if residual is not None:
        assert actual is residual


def test_writes_into_out_whatever_the_tiles(device, generator):
    x = torch.randn(1, 70, generator=generator, device=device)
    weight = torch.randn(37, 70, generator=generator, device=device)
    for tiles in (
        Tiles(n=1, k=32, num_warps=1),
        Tiles(n=2, k=16, num_warps=1, ahead=3),
        Tiles(n=4, k=32, num_warps=2, ahead=9),
        Tiles(n=16, k=128, num_warps=4),
    ):
        out = torch.full((1, 37), 7.0, device=device)
        assert single_token_linear(x=x, weight=weight, out=out, tiles=tiles) is out
        torch.testing.assert_close(out, x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("silu_mul", [False, True])
@pytest.mark.parametrize("ahead", [1, 2, 9])
def test_pairs_of_bfloat16(norm, silu_mul, ahead, device, generator):
    # An fp32 result: then nothing in the kernel is bfloat16 but what it takes apart itself.
    def random(*shape):
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    case = {
        "x": random(1, 150), "weight": random(38, 150), "norm_weight": random(150) if norm else None,
        "eps": 1e-5, "silu_mul": silu_mul,
    }  # fmt: skip
    out = torch.empty(1, 19 if silu_mul else 38, device=device)
    single_token_linear(**case, out=out, tiles=Tiles(n=4, k=64, num_warps=1, ahead=ahead))
    wide = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in case.items()}
    torch.testing.assert_close(out, fused_linear_reference(**wide), rtol=1e-4, atol=1e-4)


def test_a_large_row_does_not_overflow_in_half_precision(device):
    x = torch.full((1, 64), 6e4, dtype=torch.float16, device=device)
    weight = torch.full((8, 64), 0.5, dtype=torch.float16, device=device)
    norm = torch.full((64,), 2.0, dtype=torch.float16, device=device)
    out = single_token_linear(x=x, weight=weight, norm_weight=norm, eps=1e-6)
    torch.testing.assert_close(out, torch.full_like(out, 64.0), rtol=2e-3, atol=0)


def test_more_rows_are_refused(device):
    with pytest.raises(ValueError, match="expected one row, got 2"):
        single_token_linear(x=torch.zeros(2, 8, device=device), weight=torch.zeros(4, 8, device=device))
