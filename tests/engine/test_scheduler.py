"""Whatever is scheduled beside a request, its output is that of its solo run, and nothing is left behind."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dodona.oracle.systems.own.lengths import most_blocks_of_window
from dodona.runners.engine.request import Request
from dodona.runners.interface import RESERVED_REQUEST_ID_PREFIX
from dodona.runners.sampling.params import SamplingParams
from tests.support.fake_runner import context_hash, solo_run, token_logprobs
from tests.support.sync_engine import SyncEngine

VOCAB = 97
EOS = frozenset({0})


def make_request(
    name: str, prompt: list[int], max_model_len: int = 1 << 30, seed: int = 0, **params: object
) -> Request:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **params})
    limit = min(len(prompt) + (sampling.max_tokens or max_model_len), max_model_len)
    return Request(name, prompt, sampling, seed=seed, limit=limit, eos_token_ids=EOS)


def assert_solo(request: Request, max_model_len: int = 1 << 30) -> None:
    expected, reason = solo_run(
        request.token_ids[: request.num_prompt_tokens],
        request.params,
        vocab_size=VOCAB,
        max_model_len=max_model_len,
        seed=request.seed,
        eos=EOS,
    )
    assert request.token_ids[request.num_prompt_tokens :] == expected
    assert request.finish_reason == reason


@dataclass(frozen=True)
class Job:
    prompt: list[int]
    params: dict[str, object]
    seed: int
    arrives: int
    aborted: int | None


@st.composite
def jobs(draw: st.DrawFn, max_model_len: int) -> Job:
    # Few different tokens, so that prefixes are shared by chance; sometimes a long common one.
    common = draw(st.sampled_from([0, 0, 4, 9, 16]))
    own = draw(st.lists(st.integers(1, 2), min_size=1, max_size=12))
    prompt = ([3] * common + own)[: max_model_len - 1]
    params = {
        "temperature": draw(st.sampled_from([0.0, 1.0])),
        "max_tokens": draw(st.sampled_from([1, 2, 5, 20, None])),
        "min_tokens": draw(st.sampled_from([0, 0, 1])),
        "stop_token_ids": draw(st.sampled_from([(), tuple(range(0, 97, 9))])),
        "ignore_eos": draw(st.booleans()),
        "logprobs": draw(st.sampled_from([None, 2])),
        "prompt_logprobs": draw(st.sampled_from([None, None, 1])),
    }
    aborted = draw(st.none() | st.none() | st.integers(0, 40))
    return Job(prompt, params, draw(st.integers(0, 3)), draw(st.integers(0, 12)), aborted)


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[dict[str, object], int, list[Job]]:
    block_size = draw(st.integers(1, 5))
    max_model_len = draw(st.integers(6, 40))
    least = -(-max_model_len // block_size)
    chunked = draw(st.booleans())
    budget = draw(st.integers(1 if chunked else max_model_len, 48))
    windows = draw(st.sampled_from([(None,), (None,), (2,), (7,), (None, 1), (None, 9, 3), (8, 5)]))
    if windows[0] is not None:
        least = min(least, most_blocks_of_window(windows[0], budget, block_size))
    sizes: dict[str, object] = {
        "block_size": block_size,
        "num_blocks": draw(st.integers(least, least + 20)),
        "max_num_seqs": draw(st.integers(1, 6)),
        "max_num_batched_tokens": budget,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": draw(st.booleans()),
        "max_steps_in_flight": draw(st.integers(1, 3)),
        "num_speculative_tokens": draw(st.sampled_from([0, 1, 4])),
        "drafts_on_device": draw(st.booleans()),
        "num_micro_batches": draw(st.sampled_from([1, 1, 2, 3])),
        "windows": windows,
    }
    return sizes, max_model_len, draw(st.lists(jobs(max_model_len), min_size=1, max_size=8))


DRAFTS_INTO_NEW_BLOCKS = (
    {
        "block_size": 3,
        "num_blocks": 4,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 3,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "max_steps_in_flight": 1,
        "num_speculative_tokens": 4,
        "drafts_on_device": True,
        "num_micro_batches": 1,
        "windows": (None, 1),
    },
    11,
    [Job([1], {"temperature": 0.0, "max_tokens": 20}, 0, 0, None)],
)


@settings(max_examples=150, deadline=None)
@given(scenarios())
@example(DRAFTS_INTO_NEW_BLOCKS)
def test_every_output_is_that_of_its_solo_run(
    scenario: tuple[dict[str, object], int, list[Job]],
) -> None:
    sizes, max_model_len, todo = scenario
    engine = SyncEngine(**sizes, vocab_size=VOCAB)
    requests = [
        make_request(str(i), job.prompt, max_model_len, job.seed, **job.params) for i, job in enumerate(todo)
    ]
    for now in range(45):
        for request, job in zip(requests, todo, strict=True):
            if job.arrives == now:
                engine.scheduler.add(request)
            if job.aborted == now and now >= job.arrives and not request.finished:
                engine.scheduler.abort(request)
        engine.step()
    engine.run()
    engine.check_idle()
    for request in requests:
        if request.finish_reason == "abort":
            expected, _ = solo_run(
                request.token_ids[: request.num_prompt_tokens],
                request.params,
                vocab_size=VOCAB,
                max_model_len=max_model_len,
                seed=request.seed,
                eos=EOS,
            )
            output = request.token_ids[request.num_prompt_tokens :]
            assert output == expected[: len(output)]
        else:
            assert_solo(request, max_model_len)
            check_logprobs(request)
    if engine.runner.rows:  # the runner hears of freed rows with the next step
        request = make_request("last", [1], max_tokens=1)
        engine.scheduler.add(request)
        engine.run()
        assert len(engine.runner.rows) == 1


def check_logprobs(request: Request) -> None:
    tokens = request.token_ids
    if request.params.logprobs is not None:
        assert request.logprobs == [
            token_logprobs(context_hash(tokens[:i]), tokens[i], request.params.logprobs, VOCAB)
            for i in range(request.num_prompt_tokens, len(tokens))
        ]
    if request.params.prompt_logprobs is not None:
        assert request.prompt_logprobs == [
            token_logprobs(context_hash(tokens[:i]), tokens[i], request.params.prompt_logprobs, VOCAB)
            for i in range(1, request.num_prompt_tokens)
        ]


@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 3])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
@pytest.mark.parametrize(("num_speculative_tokens", "drafts_on_device"), [(0, False), (3, False), (3, True)])
def test_two_hundred_random_requests_with_aborts(
    max_steps_in_flight: int,
    enable_prefix_caching: bool,
    num_speculative_tokens: int,
    drafts_on_device: bool,
) -> None:
    rng = random.Random(max_steps_in_flight)
    engine = SyncEngine(
        num_blocks=40,
        max_num_seqs=12,
        max_num_batched_tokens=32,
        enable_prefix_caching=enable_prefix_caching,
        max_steps_in_flight=max_steps_in_flight,
        num_speculative_tokens=num_speculative_tokens,
        drafts_on_device=drafts_on_device,
    )
    waiting = []
    for i in range(200):
        prompt = [5] * rng.choice([0, 8, 20]) + [rng.randrange(1, 4) for _ in range(rng.randrange(1, 30))]
        waiting.append(
            make_request(
                str(i),
                prompt,
                max_model_len=150,
                seed=i,
                temperature=rng.choice([0.0, 0.8]),
                max_tokens=rng.randrange(1, 60),
                ignore_eos=rng.random() < 0.5,
                stop_token_ids=rng.sample(range(97), rng.choice([0, 3])),
                logprobs=rng.choice([None, 1]),
                prompt_logprobs=rng.choice([None, None, 1]),
            )
        )
    requests = list(waiting)
    while waiting or engine.scheduler.num_unfinished:
        for _ in range(rng.randrange(3)):
            if waiting:
                engine.scheduler.add(waiting.pop(0))
        live = [r for r in (*engine.scheduler.running, *engine.scheduler.waiting) if not r.finished]
        if live and rng.random() < 0.05:
            engine.scheduler.abort(rng.choice(live))
        engine.step()
    engine.run()
    engine.check_idle()
    aborted = sum(request.finish_reason == "abort" for request in requests)
    assert 0 < aborted < 100
    assert engine.scheduler.num_preemptions > 5
    for request in requests:
        if request.finish_reason != "abort":
            assert_solo(request, 150)
            check_logprobs(request)


def test_decodes_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    engine = SyncEngine(max_num_batched_tokens=8, enable_prefix_caching=False)
    engine.scheduler.add(make_request("short", [1, 2, 3], ignore_eos=True))
    engine.step()
    engine.scheduler.add(make_request("long", [1] * 20, ignore_eos=True))
    engine.step()
    second = engine.runner.trace.steps[-1]
    assert (second.num_decodes, list(second.num_tokens), list(second.samples)) == (1, [1, 7], [True, False])
    engine.step()
    engine.step()
    fourth = engine.runner.trace.steps[-1]
    assert (list(fourth.num_tokens), list(fourth.samples)) == ([1, 6], [True, True])
    engine.step()
    assert engine.runner.trace.steps[-1].num_decodes == 2


def test_without_chunked_prefill_a_prompt_is_computed_whole() -> None:
    engine = SyncEngine(max_num_batched_tokens=12, enable_chunked_prefill=False, enable_prefix_caching=False)
    for name in "abc":
        engine.scheduler.add(make_request(name, [1] * 9))
    engine.run()
    for step in engine.runner.trace.steps:
        assert all(count in (1, 9) for count in step.num_tokens)


def test_without_chunked_prefill_only_tokens_that_are_not_cached_must_fit() -> None:
    engine = SyncEngine(max_num_batched_tokens=20, enable_chunked_prefill=False)
    engine.scheduler.add(make_request("first", [1] * 17))
    engine.run()
    engine.runner.trace.steps.clear()
    again, other = make_request("again", [1] * 17), make_request("other", [3] * 17)
    for request in (make_request("fresh", [2] * 10), again, other):
        engine.scheduler.add(request)
    engine.run()
    # After the fresh prompt's 10 tokens, there is room for 10 more: for 1 of 17 tokens, but not for 17.
    first, second = engine.runner.trace.steps[:2]
    assert [(r.request_id, r.num_computed_tokens) for r in first.new_requests] == [
        ("fresh", 0),
        ("again", 16),
    ]
    assert list(first.num_tokens) == [10, 1]
    assert [(r.request_id, r.num_computed_tokens) for r in second.new_requests] == [("other", 0)]
    assert_solo(again)
    assert_solo(other)


def test_without_chunked_prefill_a_prompt_that_fits_exactly_is_computed() -> None:
    engine = SyncEngine(max_num_batched_tokens=20, enable_chunked_prefill=False)
    for name, token in (("a", 1), ("b", 2)):
        engine.scheduler.add(make_request(name, [token] * 10))
    engine.step()
    assert list(engine.runner.trace.steps[0].num_tokens) == [10, 10]


def test_no_more_requests_run_than_can_decode_in_a_step() -> None:
    engine = SyncEngine(max_num_seqs=4, max_num_batched_tokens=2)
    assert engine.scheduler.num_free_rows == 2
    requests = [make_request(str(i), [1 + i], ignore_eos=True) for i in range(4)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    for request in requests:
        assert_solo(request)


def test_a_request_that_is_aborted_while_it_waits_never_starts() -> None:
    engine = SyncEngine(max_num_seqs=1)
    first, aborted, last = (make_request(name, [1], ignore_eos=True) for name in ("first", "aborted", "last"))
    for request in (first, aborted, last):
        engine.scheduler.add(request)
    engine.step()
    engine.scheduler.abort(aborted)
    engine.runner.trace.request_ids.clear()
    engine.run()
    engine.check_idle()
    assert engine.runner.trace.request_ids == ["last"]
    assert (aborted.finish_reason, aborted.num_output_tokens) == ("abort", 0)
    assert_solo(last)


def test_prompt_logprobs_whose_last_chunk_is_one_token() -> None:
    engine = SyncEngine(max_num_batched_tokens=4)
    request = make_request("x", [1, 2, 3, 4, 5], prompt_logprobs=1)
    engine.scheduler.add(request)
    engine.run()
    assert list(engine.runner.trace.steps[1].num_tokens) == [1]
    check_logprobs(request)


@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 3])
def test_a_preempted_request_goes_on_with_all_its_tokens(max_steps_in_flight: int) -> None:
    """Those in flight when it lost its row included; and no log-probability comes twice."""
    engine = SyncEngine(num_blocks=6, enable_prefix_caching=False, max_steps_in_flight=max_steps_in_flight)
    params = {"max_tokens": 18, "ignore_eos": True, "logprobs": 1, "prompt_logprobs": 1}
    requests = [make_request(name, [i] * 4, **params) for i, name in enumerate("ab", 1)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    engine.check_idle()
    assert engine.scheduler.num_preemptions > 0
    for request in requests:
        assert_solo(request)
        check_logprobs(request)


def test_a_preempted_request_waits_for_its_tokens_in_flight() -> None:
    """Here its blocks are free again, by the other's end, before its last token was read."""
    engine = SyncEngine(num_blocks=7, block_size=2, max_steps_in_flight=3, enable_prefix_caching=False)
    requests = [
        make_request("first", [1] * 4, max_tokens=3, ignore_eos=True),
        make_request("last", [2] * 5, max_tokens=9, ignore_eos=True),
    ]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    assert engine.scheduler.num_preemptions == 1
    for request in requests:
        assert_solo(request)


def test_the_request_that_came_last_is_preempted_and_comes_back() -> None:
    engine = SyncEngine(num_blocks=6, enable_prefix_caching=False)
    first = make_request("first", [1] * 4, max_tokens=18, ignore_eos=True)
    last = make_request("last", [2] * 4, max_tokens=18, ignore_eos=True)
    engine.scheduler.add(first)
    engine.scheduler.add(last)
    engine.run()
    assert engine.scheduler.num_preemptions >= 1
    assert engine.finished == [first, last]
    resumed = [
        r
        for step in engine.runner.trace.steps
        for r in step.new_requests
        if r.num_prompt_tokens < len(r.token_ids)
    ]
    assert {r.request_id for r in resumed} == {"last"}
    assert_solo(first)
    assert_solo(last)


def test_a_preempted_request_goes_before_those_that_never_ran() -> None:
    engine = SyncEngine(num_blocks=6, max_num_seqs=2, enable_prefix_caching=False)
    requests = [make_request(name, [1] * 4, max_tokens=18, ignore_eos=True) for name in ("a", "b", "c")]
    for request in requests:
        engine.scheduler.add(request)
    engine.runner.trace.request_ids.clear()
    engine.run()
    assert engine.scheduler.num_preemptions >= 1
    started = engine.runner.trace.request_ids
    assert started.count("b") > 1
    assert "b" not in started[started.index("c") :]


def test_a_newcomer_leaves_a_block_for_each_running_request() -> None:
    engine = SyncEngine(num_blocks=4, enable_prefix_caching=False)
    running = make_request("running", [1] * 6, max_tokens=8, ignore_eos=True)
    newcomer = make_request("newcomer", [2] * 6, max_tokens=2, ignore_eos=True)
    engine.scheduler.add(running)
    engine.scheduler.add(newcomer)
    engine.run()
    assert engine.scheduler.num_preemptions == 0
    assert engine.finished == [running, newcomer]


def test_a_cached_prefix_is_not_computed_again() -> None:
    engine = SyncEngine()
    first = make_request("first", [1] * 10)
    engine.scheduler.add(first)
    engine.run()
    again = make_request("again", [1] * 10)
    engine.scheduler.add(again)
    engine.run()
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 8)
    assert_solo(again)


def test_the_last_token_is_always_computed() -> None:
    engine = SyncEngine()
    for name in ("first", "again"):
        request = make_request(name, [1] * 8)
        engine.scheduler.add(request)
        engine.run()
    assert request.num_cached_tokens == 4
    assert_solo(request)


def test_requests_that_arrive_together_share_their_prefix() -> None:
    engine = SyncEngine(max_num_batched_tokens=32)
    requests = [make_request(str(i), [1] * 9) for i in range(3)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    assert [request.num_cached_tokens for request in requests] == [0, 8, 8]
    for request in requests:
        assert_solo(request)


@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 3])
@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_generated_tokens_are_cached_too(max_steps_in_flight: int, block_size: int) -> None:
    engine = SyncEngine(max_steps_in_flight=max_steps_in_flight, block_size=block_size)
    first = make_request("first", [1] * 6, max_tokens=10, ignore_eos=True)
    engine.scheduler.add(first)
    engine.run()
    follow_up = make_request("follow-up", [*first.token_ids, 1, 2])
    engine.scheduler.add(follow_up)
    engine.run()
    # Of 16 tokens, the last was never computed.
    assert follow_up.num_cached_tokens == 15 // block_size * block_size
    assert_solo(follow_up)


def test_prompt_logprobs_do_not_read_the_cache() -> None:
    engine = SyncEngine()
    for name in ("first", "again"):
        request = make_request(name, [1] * 10, prompt_logprobs=1)
        engine.scheduler.add(request)
        engine.run()
    assert request.num_cached_tokens == 0
    check_logprobs(request)


def test_new_weights_do_not_find_old_prefixes() -> None:
    engine = SyncEngine()

    def cached_tokens() -> int | None:
        request = make_request("x", [1] * 10)
        engine.scheduler.add(request)
        engine.run()
        return request.num_cached_tokens

    assert cached_tokens() == 0
    assert cached_tokens() == 8
    engine.scheduler.new_weights()
    assert cached_tokens() == 0


def test_new_weights_wait_for_requests() -> None:
    engine = SyncEngine()
    engine.scheduler.add(make_request("x", [1]))
    with pytest.raises(RuntimeError, match="1 requests hold KV"):
        engine.scheduler.new_weights()


def test_never_a_step_past_max_tokens() -> None:
    engine = SyncEngine(max_steps_in_flight=2)
    engine.scheduler.add(make_request("x", [1, 2], max_tokens=5, ignore_eos=True))
    engine.run()
    assert sum(sum(step.samples) for step in engine.runner.trace.steps) == 5


def test_steps_are_numbered() -> None:
    engine = SyncEngine()
    engine.scheduler.add(make_request("x", [1, 2], max_tokens=5, ignore_eos=True))
    engine.run()
    assert [step.step for step in engine.runner.trace.steps] == list(range(5))


def test_cached_tokens_are_counted_when_a_request_first_starts() -> None:
    """Not again when it comes back after a preemption, and finds its own tokens."""
    engine = SyncEngine(num_blocks=8)
    requests = [make_request(name, [i] * 5, max_tokens=18, ignore_eos=True) for i, name in enumerate("ab", 1)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    assert engine.scheduler.num_preemptions > 0
    resumed = [r for step in engine.runner.trace.steps for r in step.new_requests if len(r.token_ids) > 5]
    assert any(r.num_computed_tokens for r in resumed)
    assert [request.num_cached_tokens for request in requests] == [0, 0]


def test_a_stop_token_counts_from_min_tokens_on() -> None:
    request = make_request("x", [1], stop_token_ids=[7], min_tokens=2)
    request.append(7)
    assert not request.finished
    request.append(7)
    assert (request.finish_reason, request.stop_reason) == ("stop", 7)


@pytest.mark.parametrize(("ignore_eos", "stop_reason"), [(False, None), (True, 0)])
def test_the_models_own_end_is_no_stop_reason(ignore_eos: bool, stop_reason: int | None) -> None:
    (eos,) = EOS
    request = make_request("x", [1], stop_token_ids=[eos], ignore_eos=ignore_eos)
    request.append(eos)
    assert (request.finish_reason, request.stop_reason) == ("stop", stop_reason)


def test_what_an_eos_made_moot_is_dropped() -> None:
    engine = SyncEngine(max_steps_in_flight=2)
    probe, _ = solo_run([1, 2], SamplingParams(temperature=0.0), vocab_size=VOCAB, max_model_len=99)
    request = make_request("x", [1, 2], stop_token_ids=[probe[2]], ignore_eos=True)
    engine.scheduler.add(request)
    engine.run()
    assert request.token_ids[2:] == probe[:3]
    assert (request.finish_reason, request.stop_reason) == ("stop", probe[2])
    assert sum(sum(step.samples) for step in engine.runner.trace.steps) == 4
    engine.check_idle()


def test_no_user_request_reaches_the_runner_with_a_reserved_id() -> None:
    engine = SyncEngine()
    assert all(name.startswith(RESERVED_REQUEST_ID_PREFIX) for name in engine.runner.trace.request_ids)
    assert engine.runner.rows == {}, "warm-up leaves no row"


@pytest.mark.parametrize("num_speculative_tokens", [0, 3])
def test_micro_batches_are_of_different_requests(num_speculative_tokens: int) -> None:
    """Two steps are under way, which share the requests; prompts' chunks follow each other at once."""
    engine = SyncEngine(num_micro_batches=2, num_speculative_tokens=num_speculative_tokens, num_blocks=64)
    long = make_request("long", [3] * 40, max_model_len=150, max_tokens=4, ignore_eos=True)
    engine.scheduler.add(long)
    for _ in range(2):
        engine.step()
    assert [step.output.num_tokens for step, _ in engine.in_flight] == [[16]]
    engine.step()
    assert long.num_computed_tokens == 40  # the last chunk is under way beside the second
    rest = [
        make_request(str(i), [i + 1] * 3, max_model_len=150, max_tokens=12, ignore_eos=True) for i in range(3)
    ]
    for request in rest:
        engine.scheduler.add(request)
    decodes = []
    while engine.scheduler.num_unfinished:
        engine.step()
        sampling = [{r.request_id for r in step.sampling} for step, _ in engine.in_flight]
        assert sum(map(len, sampling)) == len(set().union(*sampling))
        decodes += [step.output.num_decodes for step, _ in engine.in_flight]
    assert max(decodes) <= 2
    for request in (long, *rest):
        assert_solo(request, 150)
