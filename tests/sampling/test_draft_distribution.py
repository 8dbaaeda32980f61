"""Tokens that verification keeps have the target's distribution, whoever drafts and whatever a request asks
for: `tests.support.draft_chain`."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.draft_chain import METHODS, PARAMS, Defined, OnDevice, fit, run_chain, seeds_of

DRAWS = 60_000
DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.mark.parametrize("asked", PARAMS)
def test_tokens_have_the_targets_distribution(asked: str) -> None:
    chain = Defined(PARAMS[asked], seeds_of(DRAWS))
    probabilities = chain.probabilities()
    assert probabilities.sum().item() == pytest.approx(1)
    shares = {}
    for method in METHODS:
        tokens, shares[method] = run_chain(chain, method, DRAWS)
        found = fit(tokens, probabilities)
        assert found.pvalue > 1e-3, method
        assert found.num_impossible == 0
    assert len(set(shares.values())) == len(METHODS)
    # The same noise: the draft agrees more often than a draft that knows nothing.
    assert shares["draft_model, eagle, eagle3"] > shares["drafts at random"] + 0.2


def test_the_fit_tells_another_distribution() -> None:
    chain = Defined(PARAMS["temperature"], seeds_of(DRAWS))
    tokens, _ = run_chain(chain, "ngram", DRAWS)
    tokens[:300, 1] = 0  # half a percent of the requests
    assert fit(tokens, chain.probabilities()).pvalue < 1e-3


def test_kernels_draw_and_keep_what_the_definitions_do() -> None:
    """Token by token, so that what holds of the definitions' tokens holds of the kernels'."""
    shares = []
    for asked, methods in (("temperature", list(METHODS)), ("every stage", ["draft_model, eagle, eagle3"])):
        params, seeds = PARAMS[asked], seeds_of(2)
        chain = Defined(params, seeds)
        for method in methods:
            expected, share = run_chain(chain, method, len(seeds))
            found, found_share = run_chain(OnDevice(params, seeds, DEVICE), method, len(seeds))
            assert torch.equal(found, expected)
            assert found_share == share
            shares.append(share)
    assert max(shares) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("asked", PARAMS)
@pytest.mark.parametrize("method", METHODS)
def test_kernels_keep_the_targets_distribution(method: str, asked: str) -> None:
    seeds = seeds_of(DRAWS)
    tokens, _ = run_chain(OnDevice(PARAMS[asked], seeds, DEVICE), method, DRAWS)
    found = fit(tokens, Defined(PARAMS[asked], seeds).probabilities())
    assert found.pvalue > 1e-3
    assert found.num_impossible == 0
