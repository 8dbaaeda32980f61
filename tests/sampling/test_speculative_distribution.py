"""Verification keeps the target's distribution, whoever drafts: pairs of tokens from a small Markov chain.

The chain's next token depends on the last one. Each of 60,000 requests verifies one draft: the step draws a
token after the context, and one after the draft as if it had been accepted; where it was not, the next step
draws again after the token that took its place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from dodona.kernels.sampling.reference import gumbel_argmax
from dodona.runners.drafting.acceptance import num_agreeing

DRAWS, VOCAB, POSITION = 60_000, 6, 17
GENERATOR = torch.Generator().manual_seed(5)
FIRST = torch.randn(VOCAB, generator=GENERATOR)
NEXT = torch.randn(VOCAB, VOCAB, generator=GENERATOR) * 1.5
DRAFTER = FIRST + torch.randn(VOCAB, generator=GENERATOR)
"""Logits of a draft model that is wrong in places."""
SEEDS = torch.arange(DRAWS) * 7919 + 13


def draw(logits: torch.Tensor, position: int) -> torch.Tensor:
    """A token of each request at a position: the sampler's draw."""
    return gumbel_argmax(
        logits.expand(DRAWS, VOCAB),
        torch.ones(DRAWS),
        SEEDS,
        torch.full((DRAWS,), position),
        torch.zeros(DRAWS, dtype=torch.int64),
    )


DRAFTS: dict[str, Callable[[], torch.Tensor]] = {
    "one fixed token, as by prompt lookup": lambda: torch.full((DRAWS,), int(FIRST.argmax())),
    "the least likely token": lambda: torch.full((DRAWS,), int(FIRST.argmin())),
    "drawn by a draft model with the same noise": lambda: draw(DRAFTER, POSITION),
    "drawn without regard to the target": lambda: torch.randint(VOCAB, (DRAWS,), generator=GENERATOR),
}


def verified(drafts: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The two tokens of each request [draws, 2], and the share of drafts that were accepted."""
    sampled = torch.stack([draw(FIRST, POSITION), draw(NEXT[drafts], POSITION + 1)], dim=1)
    accepted = torch.tensor(
        [num_agreeing(own, [d]) for own, d in zip(sampled.tolist(), drafts.tolist(), strict=True)]
    ).bool()
    again = draw(NEXT[sampled[:, 0]], POSITION + 1)
    second = torch.where(accepted, sampled[:, 1], again)
    return torch.stack([sampled[:, 0], second], dim=1), accepted.float().mean().item()


@pytest.mark.parametrize("kind", DRAFTS)
def test_tokens_have_the_targets_distribution(kind: str) -> None:
    drafts = DRAFTS[kind]()
    tokens, _ = verified(drafts)
    expected = (FIRST.softmax(0)[:, None] * NEXT.softmax(1)).double().flatten().numpy() * DRAWS
    observed = np.bincount((tokens[:, 0] * VOCAB + tokens[:, 1]).numpy(), minlength=VOCAB**2)
    assert expected.min() > 5
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_tokens_are_those_without_drafts() -> None:
    first = draw(FIRST, POSITION)
    plain = torch.stack([first, draw(NEXT[first], POSITION + 1)], dim=1)
    for make in DRAFTS.values():
        assert torch.equal(verified(make())[0], plain)


def test_how_often_drafts_are_accepted() -> None:
    likely = FIRST.softmax(0)
    rates = {kind: verified(make())[1] for kind, make in DRAFTS.items()}
    fixed, rare, coupled, unrelated = rates.values()
    # A fixed draft is accepted with the target's probability of it, as by rejection sampling.
    assert fixed == pytest.approx(likely.max().item(), abs=0.01)
    assert rare == pytest.approx(likely.min().item(), abs=0.01)
    assert unrelated == pytest.approx(1 / VOCAB, abs=0.01)
    # With common noise, at least (1 - d) / (1 + d), d the distance in variation; other draws agree less.
    distance = (likely - DRAFTER.softmax(0)).abs().sum().item() / 2
    assert coupled >= (1 - distance) / (1 + distance) - 0.01
    assert coupled > (likely * DRAFTER.softmax(0)).sum().item() + 0.1
