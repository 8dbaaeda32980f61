"""Products of one token with quantized weights by programs that stay, against torch, on the GPU: Gluon has no
interpreter."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from dodona.kernels.linear.quantized_persistent_linear import (
    quantized_persistent_linear,
    supports_quantized_persistent,
)
from dodona.kernels.linear.quantized_single_token_linear import quantized_fused_linear_reference
from dodona.kernels.linear.quantized_weight import QuantizedWeight, quantize_weight
from dodona.kernels.linear.round_activations import Rounding, round_activations_reference
from dodona.kernels.linear.shared_ring import check_ring

BLOCK = 128
ROUNDINGS = {
    "fp8-rounded": Rounding("fp8"),
    "fp8-blocks": Rounding("fp8", BLOCK),
    "int8-rounded": Rounding("int8"),
}
KINDS = ("int8", "int8-rounded", "fp8", "fp8-rounded", "fp8-blocks", "int4", "int4-rows", "int4-zeros")


def make(kind: str, rows: int, inner: int, generator: torch.Generator) -> QuantizedWeight:
    weight = torch.randn(rows, inner, generator=generator, device=generator.device) / inner**0.5
    if kind.startswith("int4"):
        size = None if kind == "int4-rows" else 128
        return quantize_weight(weight, kind="int4", group_size=size, symmetric=kind != "int4-zeros")
    if kind == "fp8-blocks":
        found = quantize_weight(weight, kind="fp8", group_size=BLOCK)
        # As of blocks: rows of a block have one scale.
        scales = found.scales[::BLOCK].repeat_interleave(BLOCK, 0)[:rows].contiguous()
        return QuantizedWeight("fp8", found.data, scales, None, BLOCK, BLOCK)
    return quantize_weight(weight, kind="int8" if kind.startswith("int8") else "fp8")


@pytest.mark.gpu
@pytest.mark.parametrize(("columns", "inner"), [(100, 128), (2048, 1152), (64, 12288)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epilogue", ["norm", "residual", "silu_mul"])
def test_agrees_with_torch(columns, inner, kind, epilogue, hopper, generator):
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=hopper).bfloat16()

    if kind == "fp8-blocks":
        columns = -(-columns // BLOCK) * BLOCK
    x, silu_mul = random(1, inner) * 50, epilogue == "silu_mul"
    weight = make(kind, columns * (2 if silu_mul else 1), inner, generator)
    norm = random(inner) if epilogue != "residual" else None
    residual = random(1, columns) if epilogue == "residual" else None
    rounding = ROUNDINGS.get(kind)
    assert supports_quantized_persistent(weight, rounding, device=hopper, dtype=torch.bfloat16)
    if rounding is None:
        expected = quantized_fused_linear_reference(x.float(), weight, norm, 1e-5, residual, silu_mul)
    else:
        given = round_activations_reference(x, rounding, norm, 1e-5)
        expected = quantized_fused_linear_reference(given, weight, None, 0.0, residual, silu_mul)
    before = None if residual is None else residual.clone()
    actual = quantized_persistent_linear(
        x=x, weight=weight, rounding=rounding, norm_weight=norm, eps=1e-5, residual=before, silu_mul=silu_mul
    )
    assert (actual.float() - expected.float()).norm() < 3e-3 * expected.float().norm()
    if before is not None:
        assert actual is before


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_that_float16_does_not_hold(size, hopper, generator):
    x = (torch.randn(1, 1024, generator=generator, device=hopper) * size).bfloat16()
    weight = make("int4", 256, 1024, generator)
    expected = quantized_fused_linear_reference(x, weight)
    actual = quantized_persistent_linear(x=x, weight=weight)
    assert (actual.double() - expected.double()).norm() < 3e-3 * expected.double().norm()


@dataclass(frozen=True, eq=False)
class Compiled:
    """What is read of a compiled kernel."""

    asm: dict[str, str]
    metadata: SimpleNamespace


@pytest.mark.parametrize(
    ("code", "is_free"),
    [
        ("getelementptr (i8, ptr addrspace(3) @global_smem, i32 4096), i32 %1", True),
        ("getelementptr inbounds nuw (i8, ptr addrspace(3) @global_smem, i64 8192)", True),
        ("getelementptr (i8, ptr addrspace(3) @global_smem, i32 4064), i32 %1", False),
        ("store float %1, ptr addrspace(3) @global_smem, align 16", False),
    ],
)
def test_nothing_of_triton_is_in_the_ring(code: str, is_free: bool) -> None:
    lines = (
        "@global_smem = external addrspace(3) global [0 x i8], align 16",
        code,
        "load float, ptr addrspace(3) getelementptr (i8, ptr addrspace(3) @global_smem, i32 69632)",
    )
    kernel = Compiled({"llir": "\n".join(lines)}, SimpleNamespace(name="a_kernel"))
    with nullcontext() if is_free else pytest.raises(RuntimeError, match=r"a_kernel: Triton .* first 4096"):
        check_ring(kernel, 4096)


def test_what_it_does_not_serve() -> None:
    weight = quantize_weight(torch.ones(16, 128), kind="int4", group_size=32)
    with pytest.raises(ValueError, match="int4 in groups of 32 is left to quantized_linear"):
        quantized_persistent_linear(x=torch.zeros(1, 128), weight=weight)
