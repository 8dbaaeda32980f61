"""The scheduler at its edges: what one step holds exactly, what counts, and what the cache knows when."""

from __future__ import annotations

from typing import Any

import pytest

from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.engine.step_batch import ScheduledStep
from dodona.runners.interface import StepOutput
from tests.engine.test_scheduler import assert_solo, check_logprobs, make_request
from tests.support.sync_engine import SyncEngine


def make_scheduler(**changes: Any) -> Scheduler:
    sizes = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return Scheduler(**{**sizes, **changes})


def schedule(scheduler: Scheduler) -> ScheduledStep:
    step = scheduler.schedule()
    assert step is not None
    return step


def read(scheduler: Scheduler, step: ScheduledStep, token_id: int = 50) -> list[Request]:
    """The step's result has one token for all of its rows."""
    rows = [request.row for request in step.sampling]
    return scheduler.update(step, StepOutput(rows, [token_id] * len(rows), {}, {}))


def endless(name: str, prompt: list[int], **params: Any) -> Request:
    return make_request(name, prompt, **{"max_tokens": None, "ignore_eos": True, **params})


@pytest.mark.parametrize(("seqs", "budget", "rows"), [(4, 16, 4), (16, 3, 3), (5, 5, 5), (1, 1, 1)])
def test_as_many_rows_as_can_decode_in_one_step(seqs: int, budget: int, rows: int) -> None:
    scheduler = make_scheduler(max_num_seqs=seqs, max_num_batched_tokens=budget, num_blocks=64)
    assert scheduler.num_free_rows == rows
    for i in range(20):
        scheduler.add(endless(str(i), [1 + i]))
    for _ in range(20):
        step = schedule(scheduler)
        read(scheduler, step)
    assert sorted(step.output.rows) == list(range(rows))
    assert scheduler.num_free_rows == 0


def test_steps_are_numbered_from_zero() -> None:
    scheduler = make_scheduler()
    assert scheduler.schedule() is None
    scheduler.add(endless("a", [1]))
    numbers = []
    for _ in range(4):
        step = schedule(scheduler)
        numbers.append(step.output.step)
        read(scheduler, step)
    assert numbers == [0, 1, 2, 3]


def test_the_runner_is_told_all_of_a_request() -> None:
    scheduler = make_scheduler()
    params = {"temperature": 1.0, "stop_token_ids": [9, 3]}
    request = make_request("a", [1, 2, 3, 4, 5], seed=77, **params)
    request.bad_words_token_ids = ((6, 7),)
    scheduler.add(request)
    (new,) = schedule(scheduler).output.new_requests
    assert (new.request_id, new.row, new.token_ids) == ("a", 0, (1, 2, 3, 4, 5))
    assert (new.num_prompt_tokens, new.num_computed_tokens, new.block_ids) == (5, 0, (0, 1))
    assert (new.sampling_params, new.seed) == (request.params, 77)
    assert (new.stop_token_ids, new.bad_words_token_ids) == ((0, 3, 9), ((6, 7),))


def test_freed_rows_are_told_once_in_the_next_step() -> None:
    scheduler = make_scheduler()
    short, long = endless("short", [1], max_tokens=1), endless("long", [2])
    scheduler.add(short)
    scheduler.add(long)
    freed = []
    for _ in range(3):
        step = schedule(scheduler)
        freed.append(list(step.output.freed_rows))
        read(scheduler, step)
    assert freed == [[], [0], []]


def test_news_are_finished_requests_and_streaming_ones() -> None:
    scheduler = make_scheduler()
    plain, streaming = endless("plain", [1], max_tokens=2), endless("streaming", [2], max_tokens=3)
    streaming.streaming = True
    scheduler.add(plain)
    scheduler.add(streaming)
    news = [read(scheduler, schedule(scheduler)) for _ in range(3)]
    assert news == [[streaming], [plain, streaming], [streaming]]
    assert scheduler.num_unfinished == 0


def test_a_request_that_waits_for_its_last_token_holds_up_nobody() -> None:
    scheduler = make_scheduler()
    last, other = endless("last", [1], max_tokens=1), endless("other", [2])
    scheduler.add(last)
    scheduler.add(other)
    first = schedule(scheduler)
    second = schedule(scheduler)
    assert (second.sampling, second.output.num_decodes) == ([other], 1)
    assert read(scheduler, first) == [last]
    assert [request for step in (second, schedule(scheduler)) for request in step.sampling] == [other, other]


def test_a_request_that_ended_under_way_does_not_keep_others_from_their_tokens() -> None:
    scheduler = make_scheduler()
    stopped, other = make_request("stopped", [1], stop_token_ids=[50]), endless("other", [2])
    scheduler.add(stopped)
    scheduler.add(other)
    first, second = schedule(scheduler), schedule(scheduler)
    assert second.sampling == [stopped, other]
    rows = [request.row for request in second.sampling]
    assert read(scheduler, first) == [stopped]
    scheduler.update(second, StepOutput(rows, [50, 51], {}, {}))
    assert (stopped.token_ids, other.token_ids) == ([1, 50], [2, 50, 51])


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_requests_that_are_aborted_while_they_wait_are_skipped(ended: int) -> None:
    engine = SyncEngine(max_num_seqs=1)
    requests = [make_request(str(i), [1 + i], max_tokens=3, ignore_eos=True) for i in range(3)]
    for request in requests:
        engine.scheduler.add(request)
    engine.scheduler.abort(requests[ended])
    assert engine.scheduler.num_unfinished == 2
    engine.run()
    engine.check_idle()
    assert engine.finished == [request for request in requests if request is not requests[ended]]
    assert [request.finish_reason for request in requests] == [
        "abort" if i == ended else "length" for i in range(3)
    ]


def test_requests_start_in_order_of_arrival() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for name in "abc":
        scheduler.add(endless(name, [1], max_tokens=1))
    started = []
    for _ in range(3):
        step = schedule(scheduler)
        started += [new.request_id for new in step.output.new_requests]
        read(scheduler, step)
    assert started == ["a", "b", "c"]


def test_chunks_and_the_prefix_cache_are_the_default() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=6)
    first = endless("first", [1] * 9, max_tokens=1)
    scheduler.add(first)
    step = schedule(scheduler)
    assert (step.output.num_tokens, step.output.samples) == ([6], [False])
    step = schedule(scheduler)
    assert (step.output.num_tokens, step.output.num_computed_tokens, step.output.samples) == (
        [3],
        [6],
        [True],
    )
    read(scheduler, step)
    again = endless("again", [1] * 9, max_tokens=1)
    scheduler.add(again)
    assert schedule(scheduler).output.num_computed_tokens == [8]
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 8)


def test_a_prompt_of_the_whole_budget_is_computed_whole() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8, enable_chunked_prefill=False)
    scheduler.add(endless("exact", [1] * 8, max_tokens=1))
    step = schedule(scheduler)
    assert step.output.num_tokens == [8]
    read(scheduler, step)
    scheduler.add(endless("long", [2] * 9, max_tokens=1))
    assert scheduler.schedule() is None


def test_a_full_block_is_found_by_the_next_request_of_the_same_step() -> None:
    # Also where a prompt ends with the block.
    engine = SyncEngine()
    first, second = make_request("first", [1] * 4), make_request("second", [1] * 5)
    engine.scheduler.add(first)
    engine.scheduler.add(second)
    engine.run()
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 4)
    assert_solo(second)


def test_without_prefix_caching_no_block_is_remembered() -> None:
    engine = SyncEngine(enable_prefix_caching=False)
    for name in ("first", "again"):
        engine.scheduler.add(make_request(name, [1] * 9))
        engine.run()
        assert engine.scheduler.blocks.num_cached == 0


def test_equal_blocks_after_different_ones_are_not_mistaken() -> None:
    engine = SyncEngine(max_num_batched_tokens=32)
    prompts = [
        [*[1] * 4, *[2] * 4, *[3] * 4, 5],
        [*[1] * 4, *[4] * 4, *[3] * 4, 5],
        [*[1] * 4, *[4] * 4, *[3] * 4, 6],
    ]
    requests = [make_request(str(i), prompt) for i, prompt in enumerate(prompts)]
    for request in requests:
        engine.scheduler.add(request)
        engine.run()
        assert_solo(request)
    assert [request.num_cached_tokens for request in requests] == [0, 4, 12]


@pytest.mark.parametrize(("budget", "chunks"), [(3, [0, 3]), (4, [0]), (5, [0]), (2, [0, 2])])
def test_prompt_logprobs_come_from_chunks_that_hold_a_token_before_the_last(
    budget: int, chunks: list[int]
) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=budget)
    request = endless("a", [1, 2, 3, 4, 5], prompt_logprobs=1)
    scheduler.add(request)
    found = []
    while request.num_computed_tokens < 5:
        found += [start for _, _, start in schedule(scheduler).prompt_chunks]
    assert found == chunks
    engine = SyncEngine(max_num_batched_tokens=budget)
    request = make_request("a", [1, 2, 3, 4, 5], prompt_logprobs=1)
    engine.scheduler.add(request)
    engine.run()
    check_logprobs(request)


def preempted(enable_prefix_caching: bool = True) -> tuple[SyncEngine, Request, Request]:
    """Two requests that outgrow six blocks together: the second one was just preempted."""
    engine = SyncEngine(num_blocks=6, enable_prefix_caching=enable_prefix_caching)
    first = make_request("first", [1] * 4, max_tokens=18, ignore_eos=True)
    last = make_request("last", [2] * 4, max_tokens=18, ignore_eos=True)
    engine.scheduler.add(first)
    engine.scheduler.add(last)
    while not engine.scheduler.num_preemptions:
        engine.step()
    return engine, first, last


def test_a_preemption_counts_once_and_gives_all_back() -> None:
    engine, first, last = preempted()
    scheduler = engine.scheduler
    assert scheduler.num_preemptions == 1
    assert (scheduler.running, list(scheduler.waiting)) == ([first], [last])
    assert (last.block_ids, last.finished) == ([], False)
    assert scheduler.num_unfinished == 2
    engine.run()
    assert scheduler.num_preemptions == 1
    assert_solo(first)
    assert_solo(last)


def test_tokens_found_when_it_comes_back_are_not_counted_as_cached() -> None:
    engine, _, last = preempted()
    engine.run()
    assert last.num_cached_tokens == 0


def test_blocks_that_are_computed_again_are_found_again() -> None:
    engine, _, last = preempted()
    engine.run()
    follow_up = make_request("follow-up", [*last.token_ids, 3], max_tokens=1)
    engine.scheduler.add(follow_up)
    engine.run()
    # Of its 22 tokens all but the last were computed, the second time in blocks that another had meanwhile.
    assert follow_up.num_cached_tokens == 20
    assert_solo(follow_up)
