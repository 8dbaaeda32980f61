"""Experts: both ways of computing them, beside a loop over pairs in torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.activation import ACTIVATIONS
from dodona.kernels.linear.single_token_linear import Tiles
from dodona.kernels.moe.experts import MOST_FEW_TOKENS, experts, experts_reference
from dodona.kernels.moe.few_tokens import FEW_TOKENS_TILES, FewTokensTiles, few_tokens_experts
from dodona.kernels.moe.grouped import BlockTiles, GroupedTiles, grouped_experts, plan_blocks
from dodona.kernels.moe.routing import route, route_reference


@pytest.fixture
def make(device, dtype, generator):
    def inputs(tokens: int, num_experts: int, top_k: int, hidden: int, size: int) -> dict[str, torch.Tensor]:
        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        scores = torch.rand(tokens, num_experts, generator=generator, device=device)
        return {
            "x": randn(tokens, hidden).to(dtype),
            "gate_up": (randn(num_experts, 2 * size, hidden) / hidden**0.5).to(dtype),
            "down": (randn(num_experts, hidden, size) / size**0.5).to(dtype),
            "chosen": scores.topk(top_k).indices,
            "routing_weights": torch.rand(tokens, top_k, generator=generator, device=device).to(dtype),
        }

    return inputs


def expected(inputs, activation="silu"):
    return experts_reference(**inputs, activation=activation)


@pytest.mark.parametrize(
    ("hidden", "size", "tiles"),
    [
        (24, 16, FEW_TOKENS_TILES),
        (38, 42, FewTokensTiles(Tiles(16, 32, 4), Tiles(16, 16, 4, ahead=3))),
        (33, 21, FewTokensTiles(Tiles(8, 32, 4), Tiles(16, 32, 4, ahead=99))),
    ],
)
@pytest.mark.parametrize("tokens", [1, 3])
def test_few_tokens(make, tolerance, tokens, hidden, size, tiles):
    inputs = make(tokens, 6, 3, hidden, size)
    found = few_tokens_experts(**inputs, activation="silu", tiles=tiles)
    torch.testing.assert_close(found, expected(inputs), **tolerance)


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "hidden", "size", "swapped"),
    [(1, 4, 1, 64, 32, False), (9, 6, 3, 72, 40, False), (9, 6, 3, 72, 40, True), (40, 3, 2, 64, 32, False)],
)
def test_grouped(make, tolerance, tokens, num_experts, top_k, hidden, size, swapped):
    inputs = make(tokens, num_experts, top_k, hidden, size)
    each = BlockTiles(16, 32, 4, 2, swapped)
    found = grouped_experts(**inputs, activation="silu", tiles=GroupedTiles(16, each, each))
    torch.testing.assert_close(found, expected(inputs), **tolerance)


@pytest.mark.parametrize(
    ("activation", "tokens"), [*zip(ACTIVATIONS, (1, MOST_FEW_TOKENS + 1, 2), strict=True)]
)
def test_activations(make, tolerance, tokens, activation):
    inputs = make(tokens, 5, 2, 24, 24)
    found = experts(**inputs, activation=activation)
    torch.testing.assert_close(found, expected(inputs, activation), **tolerance)


@pytest.mark.parametrize("tokens", [2, 12])
def test_pairs_without_an_expert_contribute_nothing(make, tolerance, tokens):
    inputs = make(tokens, 4, 2, 32, 16)
    inputs["chosen"][0, 0], inputs["chosen"][-1] = 4, -1
    found = experts(**inputs, activation="silu")
    torch.testing.assert_close(found, expected(inputs), **tolerance)
    assert found[-1].abs().max() == 0


@pytest.mark.parametrize(("num_pairs", "num_experts"), [(1, 1), (7, 64), (2500, 40)])
def test_the_plan_has_every_pair_once(device, num_pairs, num_experts):
    """Against a sort: also where all pairs are one expert's, and where a block is full."""
    for chosen in (
        torch.randint(num_experts, (num_pairs, 1), device=device),
        torch.full((num_pairs, 1), num_experts - 1, device=device),
    ):
        plan = plan_blocks(chosen, num_experts, 16)
        seen = []
        for expert, first, count in plan.blocks.tolist():
            assert count <= 16
            pairs = plan.order[first : first + count].tolist()
            assert all(chosen[pair, 0] == expert for pair in pairs)
            seen += pairs
        assert sorted(seen) == list(range(num_pairs))


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 33])
@pytest.mark.parametrize("top_k", [1, 3])
def test_the_plans_parts_are_aligned(device, tokens, top_k):
    """Or Triton would compile the kernels anew for some numbers of tokens, while requests wait."""
    plan = plan_blocks(torch.zeros(tokens, top_k, dtype=torch.int64, device=device), 6, 16)
    assert plan.order.data_ptr() % 16 == 0
    assert plan.blocks.data_ptr() % 16 == 0


@pytest.mark.parametrize("normalise", [False, True], ids=["", "normalised"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(2, 1), (60, 4), (300, 9)])
def test_route(device, dtype, tolerance, generator, num_experts, top_k, normalise):
    # No two alike, in bf16 neither: of equal logits, any may come first.
    order = torch.rand(5, num_experts, generator=generator, device=device).argsort(1)
    logits = ((order - num_experts // 2) / 16).to(dtype)
    found = route(logits=logits, top_k=top_k, normalise=normalise, dtype=dtype)
    weights, chosen = route_reference(logits, top_k, normalise, dtype)
    assert torch.equal(found[1], chosen)
    torch.testing.assert_close(found[0], weights, **tolerance)


def test_route_names_experts_even_without_numbers(device):
    _, chosen = route(
        logits=torch.full((1, 6), float("nan"), device=device), top_k=2, normalise=True, dtype=torch.float32
    )
    assert chosen.min() >= 0
    assert chosen.max() < 6
