"""Products of pairs with quantized experts' weights, beside a loop over pairs in torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.quantized_weight import QuantizedWeight, pack_nibbles, quantize_weight
from dodona.kernels.linear.round_activations import Rounding, round_activations, round_activations_reference
from dodona.kernels.moe.grouped import plan_blocks, sum_of_pairs
from dodona.kernels.moe.quantized import (
    ExpertsWeight,
    ProductTiles,
    experts_product,
    experts_product_reference,
)

EXPERTS, ROWS, INNER = 5, 20, 96
TILES = ProductTiles(16, 16, 64, 4, 2)


def make_weight(name, generator, device):
    values = torch.randn(EXPERTS * ROWS, INNER, generator=generator, device=device) / INNER**0.5
    if name == "fp4":
        numbers = torch.randint(16, (EXPERTS * ROWS, INNER), generator=generator, device=device)
        exponents = torch.randint(120, 126, (EXPERTS * ROWS, INNER // 32), generator=generator, device=device)
        scales = exponents.to(torch.uint8).view(torch.float8_e8m0fnu)
        return QuantizedWeight("fp4", pack_nibbles(numbers), scales, None, 32)
    kind, _, rest = name.partition("-")
    size = int(rest.split("-")[0]) if rest else None
    return quantize_weight(values, kind=kind, group_size=size, symmetric=not name.endswith("asym"))


def inputs(tokens, top_k, device, dtype, generator):
    x = torch.randn(tokens, INNER, generator=generator, device=device).to(dtype)
    chosen = torch.rand(tokens, EXPERTS, generator=generator, device=device).topk(top_k).indices
    return x, chosen


@pytest.mark.parametrize("name", ["int8", "fp8", "int4-96", "int4-32", "int4-32-asym", "int8-48-asym", "fp4"])
def test_products(name, device, dtype, tolerance, generator):
    """With rows of tokens, and with a row for each pair; with an order and a bias of each expert."""
    x, chosen = inputs(9, 2, device, dtype, generator)
    order = torch.stack([torch.randperm(INNER, generator=generator, device=device) for _ in range(EXPERTS)])
    bias = torch.randn(EXPERTS, ROWS, generator=generator, device=device).to(dtype)
    weight = make_weight(name, generator, device)
    plan = plan_blocks(chosen, EXPERTS, TILES.block)
    pairs = x.repeat_interleave(2, 0)
    for given, experts in (
        (x, ExpertsWeight(weight, EXPERTS)),
        (pairs, ExpertsWeight(weight, EXPERTS, order, bias)),
    ):
        expected = experts_product_reference(given, experts, chosen)
        found = experts_product(x=given, experts=experts, plan=plan, tiles=TILES)
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize(("name", "size"), [("int8", None), ("fp8-32", 32), ("int4-32", None)])
def test_products_of_rounded_inputs(name, size, device, dtype, tolerance, generator):
    x, chosen = inputs(9, 3, device, dtype, generator)
    rounding = Rounding("int8" if "int" in name else "fp8", size)
    experts = ExpertsWeight(make_weight(name, generator, device), EXPERTS)
    plan = plan_blocks(chosen, EXPERTS, TILES.block)
    rounded = round_activations(x=x, rounding=rounding)
    expected = experts_product_reference(round_activations_reference(x, rounding), experts, chosen)
    found = experts_product(x=rounded, experts=experts, plan=plan, tiles=TILES)
    torch.testing.assert_close(found, expected.to(dtype), **tolerance)


def test_the_sum_of_pairs(device, dtype, tolerance, generator):
    """Weighted, or not; a number that is no expert's contributes nothing."""
    chosen = torch.tensor([[0, 3], [9, 1], [-1, 9]], device=device)
    parts = torch.randn(6, 40, generator=generator, device=device).to(dtype)
    weights = torch.rand(3, 2, generator=generator, device=device).to(dtype)
    has = ((chosen >= 0) & (chosen < EXPERTS)).float()[..., None]
    wide = parts.float().view(3, 2, 40) * has
    found = sum_of_pairs(parts, chosen, EXPERTS, weights)
    torch.testing.assert_close(found, (wide * weights.float()[..., None]).sum(1).to(dtype), **tolerance)
    torch.testing.assert_close(sum_of_pairs(parts, chosen, EXPERTS), wide.sum(1).to(dtype), **tolerance)
