"""Workloads: the same for every engine and in every process, and of the lengths that they promise."""

from __future__ import annotations

import pytest

from benchmarks.workloads import MIXED, WORKLOADS, make_workload
from dodona.runners.sampling.params import SamplingParams

VOCAB = 1000
LENGTHS = {
    # name: requests, least and most prompt tokens, least and most output tokens
    "nano256": (256, 100, 1024, 100, 1024),
    "short512": (512, 32, 32, 512, 512),
    "prefill256": (256, 2048, 2048, 1, 1),
    "bs1": (1, 128, 128, 512, 512),
    "bs8": (8, 128, 128, 512, 512),
    "long2": (2, 16_384, 16_384, 512, 512),
    "poisson": (128, 100, 1024, 100, 1024),
    "mixed": (256, 100, 1024, 100, 512),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_and_ids(name: str) -> None:
    requests, least_in, most_in, least_out, most_out = LENGTHS[name]
    workload = make_workload(name, vocab_size=VOCAB)
    assert len(workload.asks) == requests
    for ask in workload.asks:
        assert least_in <= len(ask.prompt) <= most_in
        assert least_out <= ask.max_tokens <= most_out
        assert all(0 <= token < VOCAB for token in ask.prompt)
    if least_in < most_in:
        lengths = [len(ask.prompt) for ask in workload.asks]
        assert abs(sum(lengths) / requests - (least_in + most_in) / 2) < 80
    assert workload.input_tokens == sum(len(ask.prompt) for ask in workload.asks)
    assert workload.output_tokens == sum(ask.max_tokens for ask in workload.asks)
    assert workload.online == (name == "poisson")


def test_a_workload_is_the_same_everywhere() -> None:
    """A recorded figure belongs to this hash: a change here makes old results incomparable."""
    assert make_workload("nano256", vocab_size=151936).fingerprint == "90c95df97b15e6eb"


@pytest.mark.parametrize("name", ["nano256", "poisson", "mixed"])
def test_seed_decides(name: str) -> None:
    first, again = (make_workload(name, vocab_size=VOCAB, seed=3) for _ in range(2))
    assert first == again
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != make_workload(name, vocab_size=VOCAB, seed=4).fingerprint


def test_arrivals_follow_the_rate() -> None:
    arrivals = [ask.arrival for ask in make_workload("poisson", vocab_size=VOCAB, rate=10.0).asks]
    assert arrivals == sorted(arrivals)
    assert 128 / arrivals[-1] == pytest.approx(10.0, rel=0.3)
    faster = [ask.arrival for ask in make_workload("poisson", vocab_size=VOCAB, rate=20.0).asks]
    assert faster == pytest.approx([arrival / 2 for arrival in arrivals], abs=1e-5)


def test_mixed_asks_for_every_kind_and_no_request_ends_early() -> None:
    asks = make_workload("mixed", vocab_size=VOCAB).asks
    for ask, kind in zip(asks, MIXED * 30, strict=False):
        assert kind.items() <= ask.sampling.items()
        params = SamplingParams(max_tokens=ask.max_tokens, ignore_eos=True, detokenize=False, **ask.sampling)
        if params.stop_token_ids:
            assert params.min_tokens == ask.max_tokens
    names = set().union(*(ask.sampling for ask in asks))
    assert {"top_k", "top_p", "min_p", "seed", "logprobs", "repetition_penalty", "logit_bias"} <= names


def test_warm_up_has_other_prompts_of_the_same_lengths() -> None:
    workload = make_workload("mixed", vocab_size=VOCAB)
    warm_up = workload.warm_up(8)
    assert [len(ask.prompt) for ask in warm_up.asks] == [len(ask.prompt) for ask in workload.asks]
    assert {ask.max_tokens for ask in warm_up.asks} == {8}
    assert not {ask.prompt for ask in warm_up.asks} & {ask.prompt for ask in workload.asks}
    assert all(ask.sampling.get("min_tokens", 0) <= ask.max_tokens for ask in warm_up.asks)


def test_smaller_shows_in_the_name() -> None:
    workload = make_workload("nano256", vocab_size=VOCAB)
    small = workload.smaller(3, 50)
    assert small.name == "nano256-small"
    assert len(small.asks) == 3
    assert small.max_model_len <= 2 * 1024 // 50
    assert workload.smaller(None, 1) is workload


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match="'nano' is not known; expected one of nano256, short512"):
        make_workload("nano", vocab_size=VOCAB)
    with pytest.raises(ValueError, match="--rate must be above 0"):
        make_workload("poisson", vocab_size=VOCAB, rate=0.0)
