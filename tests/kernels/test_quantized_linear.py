"""Products with quantized weights, and the rounding of their inputs, against torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.eight_bit_linear import eight_bit_linear, supports_eight_bit_linear
from dodona.kernels.linear.quantized_linear import (
    quantized_linear,
    quantized_linear_reference,
    widen,
)
from dodona.kernels.linear.quantized_single_token_linear import (
    QuantizedTiles,
    quantized_fused_linear_reference,
    quantized_single_token_linear,
    supports_quantized_single_token,
)
from dodona.kernels.linear.quantized_weight import (
    FP8_MAX,
    QuantizedWeight,
    dequantize,
    pack_nibbles,
    quantize_weight,
)
from dodona.kernels.linear.rms_norm import rms_norm_reference
from dodona.kernels.linear.round_activations import (
    Rounding,
    round_activations,
    round_activations_reference,
)

KINDS = ["int8", "fp8", "fp8-blocks", "int4", "int4-rows", "int4-zeros"]
BLOCK = 32


def make(kind: str, rows: int, inner: int, generator: torch.Generator) -> QuantizedWeight:
    device = generator.device
    weight = torch.randn(rows, inner, generator=generator, device=device) / inner**0.5
    if kind in ("int8", "fp8"):
        return quantize_weight(weight, kind=kind)
    if kind == "fp8-blocks":
        groups, bands = -(-inner // BLOCK), -(-rows // BLOCK)
        scales = torch.rand(bands, groups, generator=generator, device=device) * 1e-3 + 1e-4
        data = (torch.randn(rows, inner, generator=generator, device=device) * 50).clamp(-FP8_MAX, FP8_MAX)
        scales = scales.repeat_interleave(BLOCK, 0)[:rows].contiguous()
        return QuantizedWeight("fp8", data.to(torch.float8_e4m3fn), scales, None, BLOCK, BLOCK)
    if kind == "int4-rows":
        return quantize_weight(weight, kind="int4")
    return quantize_weight(weight, kind="int4", group_size=BLOCK, symmetric=kind == "int4")


def roundings(kind: str) -> list[Rounding | None]:
    if kind == "fp8-blocks":
        return [Rounding("fp8", BLOCK)]
    return [None, Rounding("fp8" if kind == "fp8" else "int8")] if kind in ("int8", "fp8") else [None]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("group_size", [None, 32, 40])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
def test_activations_are_rounded_as_the_reference_rounds(kind, group_size, norm, dtype, device, generator):
    x = torch.randn(5, 200, generator=generator, device=device).to(dtype)
    x[1] = 0
    x[2] *= 1e-3
    x[3, :7] = torch.tensor([448.0, 447, 1.0625, 1.1875, 0.01, -0.002, -448])
    weight = torch.rand(200, generator=generator, device=device).to(dtype) if norm else None
    rounding = Rounding(kind, group_size)
    made = round_activations(x=x, rounding=rounding, norm_weight=weight, eps=1e-6)
    size = group_size or 200
    scales = made.scales.repeat_interleave(size, 1)[:, :200]
    expected = round_activations_reference(x, rounding, weight, 1e-6)
    # The norm's last bit may round to a neighbour.
    close = torch.isclose(made.values.float() * scales, expected, rtol=1e-5, atol=1e-7)
    assert close.float().mean() > (0.98 if norm else 0.9999)
    step = 0.07 if kind == "fp8" else 1.01 / 127
    biggest = (rms_norm_reference(x, weight, 1e-6) if norm else x).float().abs().amax(1, keepdim=True)
    assert ((made.values.float() * scales - expected).abs() <= step * biggest + 1e-7).all()


def test_every_e4m3_number_and_every_middle_is_rounded_right(device):
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, -numbers, -middles])[None].to(device)
    made = round_activations(x=x, rounding=Rounding("fp8"))
    assert made.scales.item() == 1.0
    assert torch.equal(made.values, x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("columns", "inner", "norm", "epilogue"),
    [
        (48, 64, False, "plain"),
        (20, 160, True, "residual"),
        (20, 160, True, "silu_mul"),
        (4, 4160, True, "plain"),
        (4, 4160, False, "silu_mul"),
    ],
)
def test_one_row(kind, columns, inner, norm, epilogue, dtype, device, tolerance, generator):
    weight = make(kind, columns * (2 if epilogue == "silu_mul" else 1), inner, generator)
    if weight.shared_rows > 1:
        weight = QuantizedWeight(weight.kind, weight.data, weight.scales, None, BLOCK, 4)
    x = torch.randn(1, inner, generator=generator, device=device).to(dtype)
    norm_weight = torch.rand(inner, generator=generator, device=device).to(dtype) if norm else None
    residual = torch.randn(1, columns, generator=generator, device=device).to(dtype)
    residual = residual if epilogue == "residual" else None
    silu_mul = epilogue == "silu_mul"
    for rounding in roundings(kind):
        before = None if residual is None else residual.clone()
        if rounding is None:
            given = x
            expected = quantized_fused_linear_reference(x, weight, norm_weight, 1e-5, residual, silu_mul)
            actual = quantized_single_token_linear(
                x=x, weight=weight, norm_weight=norm_weight, eps=1e-5, residual=before, silu_mul=silu_mul
            )
        else:
            given = round_activations(x=x, rounding=rounding, norm_weight=norm_weight, eps=1e-5)
            scales = given.scales.repeat_interleave(rounding.group_size or inner, 1)[:, :inner]
            wide = given.values.float() * scales
            expected = quantized_fused_linear_reference(wide, weight, None, 0.0, residual, silu_mul).to(dtype)
            actual = quantized_single_token_linear(x=given, weight=weight, residual=before, silu_mul=silu_mul)
        # The surplus of 4-bit numbers is some 30 times what remains.
        allowed = {k: 4 * v for k, v in tolerance.items()} if "int4" in kind else tolerance
        torch.testing.assert_close(actual, expected, **allowed)
        if before is not None:
            assert actual is before


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
@pytest.mark.parametrize("rows", [1, 20, 70])
def test_products_of_eight_bit_numbers(kind, rows, dtype, device, tolerance, generator):
    size = 128 if kind == "fp8-blocks" else None
    weight = make(kind, 144, 272, generator)
    if size is not None:
        scales = torch.rand(2, 3, generator=generator, device=device).repeat_interleave(128, 0)[:144]
        weight = QuantizedWeight("fp8", weight.data, scales.contiguous(), None, size, 128)
    x = torch.randn(rows, 272, generator=generator, device=device).to(dtype)
    rounding = Rounding("int8" if kind == "int8" else "fp8", size)
    narrow = round_activations(x=x, rounding=rounding, narrow=True)
    assert narrow.values.dtype == weight.data.dtype
    wide = round_activations(x=x, rounding=rounding)
    assert torch.equal(narrow.values.to(dtype), wide.values)
    assert torch.equal(narrow.scales, wide.scales)
    expected = quantized_linear_reference(round_activations_reference(x, rounding), weight).to(dtype)
    # The GPU adds up products of E4M3 numbers with some 13 bits, 128 at a time.
    allowed = {"rtol": 2e-3, "atol": 2e-3 * expected.abs().max().item()} if kind != "int8" else tolerance
    torch.testing.assert_close(eight_bit_linear(x=narrow, weight=weight, dtype=dtype), expected, **allowed)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
@pytest.mark.parametrize("rows", [40, 77, 1000])
def test_eight_bit_products_on_a_gpu(kind, rows, hopper, generator):
    size = 128 if kind == "fp8-blocks" else None
    weight = make(kind, 256, 1024, generator)
    if size is not None:
        scales = torch.rand(2, 8, generator=generator, device=hopper).repeat_interleave(128, 0)
        weight = QuantizedWeight("fp8", weight.data, scales.contiguous(), None, size, 128)
    x = torch.randn(rows, 1024, generator=generator, device=hopper).bfloat16()
    rounding = Rounding("int8" if kind == "int8" else "fp8", size)
    assert supports_eight_bit_linear(weight, rounding, device=hopper, dtype=x.dtype)
    narrow = round_activations(x=x, rounding=rounding, narrow=True)
    actual = eight_bit_linear(x=narrow, weight=weight, dtype=x.dtype).float()
    expected = quantized_linear_reference(round_activations_reference(x, rounding), weight).float()
    assert actual.shape == expected.shape
    assert (actual - expected).norm() < 3e-3 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_many_rows(kind, rows, dtype, device, tolerance, generator):
    weight = make(kind, 72, 160, generator)
    x = torch.randn(rows, 160, generator=generator, device=device).to(dtype)
    for rounding in roundings(kind):
        if rounding is None:
            expected, given = quantized_linear_reference(x, weight), x
        else:
            given = round_activations(x=x, rounding=rounding)
            scales = given.scales.repeat_interleave(rounding.group_size or 160, 1)
            expected = quantized_linear_reference(given.values.float() * scales, weight).to(dtype)
        torch.testing.assert_close(quantized_linear(x=given, weight=weight), expected, **tolerance)
    torch.testing.assert_close(widen(weight, dtype), dequantize(weight, dtype), rtol=1e-6, atol=0)


def test_eight_bit_groups_and_zero_points_are_left_to_the_product_of_many_rows(device, generator):
    values = torch.randint(-128, 128, (24, 64), dtype=torch.int8, generator=generator, device=device)
    scales = torch.rand(24, 2, generator=generator, device=device)
    zeros = torch.randint(-9, 9, (24, 2), dtype=torch.int8, generator=generator, device=device)
    weight = QuantizedWeight("int8", values, scales, zeros, 32)
    x = torch.randn(3, 64, generator=generator, device=device)
    assert not supports_quantized_single_token(weight)
    with pytest.raises(ValueError, match="int8 in groups of 32 is left to quantized_linear"):
        quantized_single_token_linear(x=x[:1], weight=weight)
    torch.testing.assert_close(
        quantized_linear(x=x, weight=weight), x @ dequantize(weight).T, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_any_tiles(kind, device, generator):
    weight = make(kind, 37, 320, generator)
    x = torch.randn(1, 320, generator=generator, device=device)
    for tiles in (QuantizedTiles(1, 64, 1), QuantizedTiles(2, 128, 2), QuantizedTiles(16, 512, 4)):
        out = torch.full((1, 37), 7.0, device=device)
        assert quantized_single_token_linear(x=x, weight=weight, out=out, tiles=tiles) is out
        torch.testing.assert_close(out, x @ dequantize(weight).T, rtol=1e-5, atol=1e-5)


def test_pairs_of_bfloat16_beside_nibbles(device, generator):
    # An fp32 result: then nothing in the kernel is bfloat16 but what it takes apart itself.
    values = torch.randint(0, 16, (24, 96), dtype=torch.uint8, generator=generator, device=device)
    scales = torch.rand(24, 3, generator=generator, device=device)
    weight = QuantizedWeight("int4", pack_nibbles(values), scales, None, 32)
    x = torch.randn(1, 96, generator=generator, device=device).bfloat16()
    norm = torch.rand(96, generator=generator, device=device).bfloat16()
    out = torch.empty(1, 24, device=device)
    quantized_single_token_linear(x=x, weight=weight, norm_weight=norm, eps=1e-5, out=out)
    expected = quantized_fused_linear_reference(x.float(), weight, norm.float(), 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)
