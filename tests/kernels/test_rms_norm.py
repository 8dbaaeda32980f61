from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

SIZES = [(1, 16), (3, 96), (5, 1000), (2, 4096)]


@pytest.mark.parametrize(("rows", "hidden"), SIZES)
def test_rms_norm_agrees_with_torch(rows, hidden, dtype, device, tolerance, generator):
    x = torch.randn(rows, hidden, generator=generator, device=device).to(dtype)
    weight = torch.randn(hidden, generator=generator, device=device).to(dtype)
    actual = rms_norm(x=x, weight=weight, eps=1e-6)
    torch.testing.assert_close(actual, rms_norm_reference(x, weight, 1e-6), **tolerance)
    builtin = torch.nn.functional.rms_norm(x.float(), (hidden,), weight.float(), 1e-6).to(dtype)
    torch.testing.assert_close(actual, builtin, **tolerance)


def test_rms_norm_takes_strided_rows(dtype, device, tolerance, generator):
    wide = torch.randn(4, 80, generator=generator, device=device).to(dtype)
    weight = torch.randn(48, generator=generator, device=device).to(dtype)
    x = wide[:, :48]
    torch.testing.assert_close(
        rms_norm(x=x, weight=weight, eps=1e-5), rms_norm_reference(x, weight, 1e-5), **tolerance
    )


@pytest.mark.parametrize(("rows", "hidden"), SIZES)
def test_add_rms_norm_agrees_with_torch(rows, hidden, dtype, device, tolerance, generator):
    x = torch.randn(rows, hidden, generator=generator, device=device).to(dtype)
    residual = 3 * torch.randn(rows, hidden, generator=generator, device=device).to(dtype)
    weight = torch.randn(hidden, generator=generator, device=device).to(dtype)
    expected, total = add_rms_norm_reference(x, residual, weight, 1e-6)
    actual = add_rms_norm(x=x, residual=residual, weight=weight, eps=1e-6)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(residual, total, rtol=0, atol=0)


def test_epsilon_counts(device):
    x = torch.full((1, 32), 1e-3, device=device)
    weight = torch.ones(32, device=device)
    torch.testing.assert_close(
        rms_norm(x=x, weight=weight, eps=1.0), torch.full((1, 32), 1e-3, device=device), rtol=1e-5, atol=0
    )
