"""Products of up to 128 rows with quantized weights, against torch, on the GPU: Gluon has no interpreter; and
the Triton kernel that prepares the rows."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.permuted_halves import permuted_halves, permuted_halves_reference
from dodona.kernels.linear.quantized_linear import quantized_linear_reference
from dodona.kernels.linear.quantized_rows_linear import (
    RowsTiles,
    quantized_rows_linear,
    supports_quantized_rows,
)
from dodona.kernels.linear.quantized_weight import QuantizedWeight, quantize_weight
from tests.kernels.test_quantized_persistent_linear import make

KINDS = ("int8", "fp8", "int4", "int4-rows", "int4-zeros", "fp8-blocks")


def weight_of(kind: str, columns: int, inner: int, generator: torch.Generator) -> QuantizedWeight:
    return make(kind, -(-columns // 128) * 128 if kind == "fp8-blocks" else columns, inner, generator)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [9, 50, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(kind, rows, hopper, generator):
    for columns, inner, tiles in (
        (100, 128, None),
        (1024, 1152, RowsTiles(64, 2, 4)),
        (200, 4096, RowsTiles(128, 3, 2)),
    ):
        # Rows of a wider tensor, and of very different sizes.
        wide = torch.randn(rows, inner + 8, generator=generator, device=hopper)
        x = (wide * torch.logspace(-20, 20, rows, device=hopper)[:, None]).bfloat16()[:, :inner]
        weight = weight_of(kind, columns, inner, generator)
        assert supports_quantized_rows(weight, rows, device=hopper, dtype=torch.bfloat16)
        expected = quantized_linear_reference(x, weight).double()
        actual = quantized_rows_linear(x=x, weight=weight, tiles=tiles).double()
        errors = (actual - expected).norm(dim=1) / expected.norm(dim=1)
        assert errors.max() < 3e-3, (columns, inner)


@pytest.mark.gpu
def test_a_lost_row_is_its_own(hopper, generator):
    x = torch.randn(20, 256, generator=generator, device=hopper).bfloat16()
    weight = weight_of("int4", 128, 256, generator)
    expected = quantized_rows_linear(x=x, weight=weight)
    x[3] = float("nan")
    actual = quantized_rows_linear(x=x, weight=weight)
    assert actual[3].isnan().all()
    assert torch.equal(actual[:3], expected[:3])
    assert torch.equal(actual[4:], expected[4:])


@pytest.mark.parametrize("nibbles", [True, False])
def test_permuted_halves(nibbles: bool, device, generator) -> None:
    x = torch.randn(5, 392, generator=generator, device=generator.device)[:, :384]
    x = (x * torch.logspace(-30, 30, 5, device=x.device)[:, None]).to(device)
    x[4] = 0.0
    found = permuted_halves(x=x, nibbles=nibbles)
    assert found.values.abs().amax(1)[:4].min() >= 2**14
    expected = permuted_halves_reference(x, nibbles)
    actual = found.values.float() * found.factors[:, None]
    sizes = x.abs().amax(1, keepdim=True).clamp(min=1e-35)
    torch.testing.assert_close(actual / sizes, expected / sizes, rtol=0, atol=1e-3)
    # Within 128 elements each thread of four has the 16 bytes that it reads of a weight.
    places = permuted_halves_reference(torch.arange(128.0)[None], nibbles)[0].int()
    for thread in range(4):
        own = places.view(16, 4, 2)[:, thread].flatten()
        starts = (32 * thread,) if nibbles else (16 * thread, 64 + 16 * thread)
        assert own.tolist() == [s + i for s in starts for i in range(32 // len(starts))]


def test_what_it_does_not_serve() -> None:
    weight = quantize_weight(torch.ones(16, 128), kind="int4", group_size=32)
    with pytest.raises(ValueError, match="int4 in groups of 32 is left to quantized_linear"):
        quantized_rows_linear(x=torch.zeros(20, 128), weight=weight)
    weight = quantize_weight(torch.ones(16, 128), kind="int8")
    with pytest.raises(ValueError, match="x: expected at most 128 rows, got 129"):
        quantized_rows_linear(x=torch.zeros(129, 128), weight=weight)
    with pytest.raises(ValueError, match="x: expected rows of a multiple of 128 elements, got 100"):
        permuted_halves(x=torch.zeros(2, 100), nibbles=True)
