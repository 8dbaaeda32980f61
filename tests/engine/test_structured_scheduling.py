"""Requests with grammars among others: each is asked what it allows with all its tokens read, whatever else
happens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.runners.engine.request import Request
from dodona.runners.sampling.params import SamplingParams
from tests.engine.test_scheduler import EOS, VOCAB, assert_solo, make_request
from tests.support.counting_grammar import COUNT_TO, CountingGrammar
from tests.support.sync_engine import SyncEngine


def grammar(break_at: int | None = None) -> CountingGrammar:
    return CountingGrammar(VOCAB, min(EOS), break_at)


def guess(token_ids: Sequence[int]) -> int:
    return grammar().guess(token_ids)


def counting_request(name: str, prompt: list[int], *, break_at: int | None = None, **changes: Any) -> Request:
    params = SamplingParams(
        **{"temperature": 1.0, "max_tokens": 20, "structured_outputs": {"regex": "stands for it"}, **changes}
    )
    return Request(
        name, prompt, params, seed=len(prompt), limit=len(prompt) + (params.max_tokens or 0),
        eos_token_ids=EOS, grammar=grammar(break_at),  # type: ignore[arg-type]
    )  # fmt: skip


def outputs(request: Request) -> list[int]:
    return request.token_ids[request.num_prompt_tokens :]


def solo(prompt: list[int], **changes: Any) -> Request:
    engine = SyncEngine(num_blocks=64)
    request = counting_request("solo", prompt, **changes)
    engine.scheduler.add(request)
    engine.run()
    return request


@settings(max_examples=80, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=8),
    steps=st.integers(1, 3),
    num_blocks=st.integers(12, 40),
    budget=st.integers(3, 16),
    prefix_caching=st.booleans(),
    seed=st.integers(0, 1 << 30),
    drafts=st.sampled_from([0, 3]),
)
def test_among_others_as_alone(
    prompts: list[list[int]],
    steps: int,
    num_blocks: int,
    budget: int,
    prefix_caching: bool,
    seed: int,
    drafts: int,
) -> None:
    rng = random.Random(seed)
    engine = SyncEngine(
        num_blocks=num_blocks, max_steps_in_flight=steps, max_num_batched_tokens=budget,
        enable_prefix_caching=prefix_caching, num_speculative_tokens=drafts, guess=guess,
        drafts_on_device=seed % 2 == 0,
    )  # fmt: skip
    requests = []
    for i, prompt in enumerate(prompts):
        plain = rng.random() < 0.5
        requests.append((make_request if plain else counting_request)(str(i), prompt))
        engine.scheduler.add(requests[-1])
        if rng.random() < 0.5:
            engine.step()
    engine.run()
    engine.check_idle()
    for request in requests:
        if request.grammar is None:
            assert_solo(request)
        else:
            alone = solo(request.token_ids[: request.num_prompt_tokens])
            assert outputs(request) == outputs(alone)
            assert request.finish_reason == "stop"
            assert request.token_ids[-1] in EOS
            assert request.grammar.tokens == outputs(request)  # type: ignore[attr-defined]


@pytest.mark.parametrize("drafts_on_device", [False, True])
def test_drafts_of_a_grammar_are_accepted_up_to_its_end(drafts_on_device: bool) -> None:
    engine = SyncEngine(
        num_speculative_tokens=4, guess=guess, num_blocks=64, drafts_on_device=drafts_on_device,
        max_steps_in_flight=2,
    )  # fmt: skip
    requests = [counting_request(str(i), [i + 1] * 3) for i in range(30)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    for request in requests:
        assert outputs(request) == outputs(solo(request.token_ids[:3]))
    stats = engine.scheduler.draft_stats
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert stats.num_draft_tokens == sum(request.num_draft_tokens for request in requests)
    assert stats.num_accepted_tokens == sum(request.num_accepted_tokens for request in requests)


@pytest.mark.parametrize("steps", [1, 2])
def test_preempted_requests_go_on_where_they_were(steps: int) -> None:
    # Two blocks each for the prompts, and too few for all of the outputs.
    engine = SyncEngine(num_blocks=10, max_steps_in_flight=steps, enable_prefix_caching=False)
    requests = [counting_request(str(i), [i + 1] * 8) for i in range(4)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    engine.check_idle()
    assert engine.scheduler.num_preemptions > 0
    for i, request in enumerate(requests):
        assert outputs(request) == outputs(solo([i + 1] * 8))


def test_others_run_in_every_step() -> None:
    """With two steps under way, a request with a grammar takes part in every second one."""
    engine = SyncEngine(max_steps_in_flight=2)
    plain = make_request("plain", [1, 2], max_tokens=10, ignore_eos=True)
    structured = counting_request("structured", [1, 2])
    engine.scheduler.add(plain)
    engine.scheduler.add(structured)
    engine.run()
    rows = [len(step.rows) for step in engine.runner.trace.steps]
    assert rows[:6] == [2, 1, 2, 1, 2, 1]
    assert_solo(plain)


def test_min_tokens_gives_way_to_the_end_of_a_grammar() -> None:
    request = solo([1], min_tokens=12)
    # FakeRunner masks no grammar by min_tokens: an end that was allowed is the end.
    assert request.finish_reason == "stop"
    assert request.num_output_tokens <= COUNT_TO + 1


def test_a_limit_ends_it() -> None:
    request = solo([1], max_tokens=2)
    assert request.finish_reason == "length"
    assert request.num_output_tokens == 2


@pytest.mark.parametrize("steps", [1, 2])
def test_a_grammar_that_breaks_ends_its_request_only(steps: int) -> None:
    engine = SyncEngine(max_steps_in_flight=steps)
    broken = counting_request("broken", [1], break_at=2, logprobs=1)
    whole = counting_request("whole", [1, 2])
    engine.scheduler.add(broken)
    engine.scheduler.add(whole)
    engine.run()
    engine.check_idle()
    assert (broken.finish_reason, broken.error) == ("error", "it broke")
    assert broken.num_output_tokens == 2
    assert len(broken.take_progress().logprobs) == len(outputs(broken)) == 2
    assert outputs(whole) == outputs(solo([1, 2]))


def test_an_aborted_one_leaves_nothing_behind() -> None:
    engine = SyncEngine(max_steps_in_flight=2)
    request, other = counting_request("a", [1]), make_request("b", [2])
    for added in (request, other):
        engine.scheduler.add(added)
    engine.step()
    engine.scheduler.abort(request)
    engine.run()
    engine.check_idle()
    assert engine.scheduler._num_structured == 0
    assert_solo(other)
