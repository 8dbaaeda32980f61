"""Products of small batches with quantized weights against torch, on the GPU: Gluon has no interpreter."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.quantized_single_token_linear import quantized_fused_linear_reference
from dodona.kernels.linear.quantized_small_batch_linear import (
    quantized_small_batch_linear,
    supports_quantized_small_batch,
)
from dodona.kernels.linear.quantized_weight import QuantizedWeight, quantize_weight
from dodona.kernels.linear.round_activations import Rounding, round_activations

KINDS = ("int8", "fp8", "fp8-rounded", "fp8-blocks", "int4", "int4-rows", "int4-zeros")


def make(kind: str, rows: int, inner: int, generator: torch.Generator) -> QuantizedWeight:
    weight = torch.randn(rows, inner, generator=generator, device=generator.device) / inner**0.5
    if kind.startswith("int4"):
        size = None if kind == "int4-rows" else 128
        return quantize_weight(weight, kind="int4", group_size=size, symmetric=kind != "int4-zeros")
    if kind == "fp8-blocks":
        return quantize_weight(weight, kind="fp8", group_size=128)
    return quantize_weight(weight, kind="int8" if kind == "int8" else "fp8")


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 5, 16])
@pytest.mark.parametrize(("columns", "inner"), [(100, 128), (2056, 1024), (64, 12288)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epilogue", ["norm", "residual", "silu_mul"])
def test_agrees_with_torch(tokens, columns, inner, kind, epilogue, hopper, generator):
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=hopper).bfloat16()

    x, silu_mul = random(tokens, inner), epilogue == "silu_mul"
    weight = make(kind, columns * (2 if silu_mul else 1), inner, generator)
    norm = random(inner) if epilogue == "norm" else None
    residual = random(tokens, columns) if epilogue == "residual" else None
    given, wide = x, x
    if kind in ("fp8-rounded", "fp8-blocks"):
        size = 128 if kind == "fp8-blocks" else None
        given = round_activations(x=x, rounding=Rounding("fp8", size), norm_weight=norm, eps=1e-5)
        wide, norm = given.values.float() * given.scales.repeat_interleave(size or inner, 1), None
    expected = quantized_fused_linear_reference(wide, weight, norm, 1e-5, residual, silu_mul)
    before = None if residual is None else residual.clone()
    actual = quantized_small_batch_linear(
        x=given, weight=weight, norm_weight=norm, eps=1e-5, residual=before, silu_mul=silu_mul
    )
    assert (actual.float() - expected.float()).norm() < 8e-3 * expected.float().norm()
    if before is not None:
        assert actual is before


def test_what_it_does_not_serve() -> None:
    weight = quantize_weight(torch.ones(16, 128), kind="int4", group_size=32)
    with pytest.raises(ValueError, match="int4 in groups of 32 is left to quantized_linear"):
        quantized_small_batch_linear(x=torch.zeros(2, 128), weight=weight)
    with pytest.raises(ValueError, match="at most 16 rows, got 17"):
        quantized_small_batch_linear(x=torch.zeros(17, 128), weight=weight)
    assert not supports_quantized_small_batch([], device=torch.device("cpu"), dtype=torch.bfloat16)
