"""Drafts in the scheduler: what is counted for them, what is taken back, and what they may take."""

from __future__ import annotations

import math
import pickle

import pytest

from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.engine.draft_stats import DraftStats
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.engine.step_batch import ScheduledStep
from dodona.runners.interface import FurtherTokens, StepOutput
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from tests.engine.test_scheduler import assert_solo, make_request
from tests.engine.test_structured_scheduling import counting_request
from tests.support.sync_engine import SyncEngine


def scheduler(**changes: int) -> Scheduler:
    sizes = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return Scheduler(**{**sizes, **changes}, num_speculative_tokens=4)


def request(name: str = "r", length: int = 3, limit: int = 40, **params: object) -> Request:
    return Request(
        name, list(range(1, length + 1)), SamplingParams(ignore_eos=True, **params), seed=0, limit=limit
    )


def schedule(found: Scheduler) -> ScheduledStep:
    step = found.schedule()
    assert step is not None
    return step


def start(found: Scheduler, asked: Request, drafts: list[int]) -> ScheduledStep:
    """Run its prompt, propose drafts after token 50, and schedule what verifies them."""
    found.add(asked)
    step = schedule(found)
    row = step.output.rows[0]
    found.update(step, StepOutput([row], [50], draft_token_ids={row: drafts}))
    return schedule(found)


def test_a_row_computes_its_token_and_its_drafts() -> None:
    found, asked = scheduler(), request()
    output = start(found, asked, [51, 52, 53]).output
    assert (output.rows, output.num_tokens, output.num_computed_tokens) == ([asked.row], [4], [3])
    assert (output.samples, output.num_decodes) == ([True], 0)
    assert output.draft_token_ids == {asked.row: [51, 52, 53]}
    # Tokens 3 .. 6 need a second block.
    assert [(row, len(blocks)) for row, blocks in output.new_blocks] == [(asked.row, 1)]


def test_rejected_drafts_are_taken_back_and_their_blocks_stay() -> None:
    found, asked = scheduler(block_size=2), request()
    step = start(found, asked, [51, 52, 53, 54])
    assert (asked.num_tokens, asked.num_computed_tokens) == (9, 8)
    blocks = list(asked.block_ids)
    assert len(blocks) == 4
    row = asked.row
    found.update(step, StepOutput([row], [51], further={row: FurtherTokens([60])}))
    assert asked.token_ids[3:] == [50, 51, 60]
    assert (asked.num_tokens, asked.num_computed_tokens) == (6, 5)
    assert (asked.block_ids, asked.capacity) == (blocks, 8)
    following = schedule(found).output
    assert (following.num_tokens, following.num_computed_tokens) == ([1], [5])
    assert (following.num_decodes, following.new_blocks) == (1, [])
    assert (asked.num_draft_tokens, asked.num_accepted_tokens) == (4, 1)


def test_nothing_of_a_request_is_scheduled_while_its_drafts_are_under_way() -> None:
    found, asked = scheduler(), request()
    start(found, asked, [51, 52])
    assert found.schedule() is None


def test_drafts_stay_within_the_length() -> None:
    found, asked = scheduler(), request(limit=6)
    step = start(found, asked, [51, 52, 53])
    assert step.output.draft_token_ids == {asked.row: [51]}
    row = asked.row
    assert found.update(step, StepOutput([row], [51], further={row: FurtherTokens([52])})) == [asked]
    assert (asked.finish_reason, asked.token_ids[3:]) == ("length", [50, 51, 52])


def test_drafts_leave_a_token_of_the_step_to_every_running_request() -> None:
    found = scheduler(max_num_batched_tokens=6)
    requests = [request(str(i), length=1) for i in range(3)]
    for asked in requests:
        found.add(asked)
    step = schedule(found)
    rows = step.output.rows
    found.update(
        step, StepOutput(rows, [50] * 3, draft_token_ids={row: [51, 52] for row in (rows[0], rows[2])})
    )
    output = schedule(found).output
    assert output.rows == [rows[1], rows[0], rows[2]]  # decodes come first
    assert (output.num_tokens, output.num_decodes) == ([1, 3, 2], 1)


def test_drafts_preempt_nobody() -> None:
    found = scheduler(num_blocks=2, block_size=4)
    one, other = request("one"), request("other")
    found.add(one)
    found.add(other)
    step = schedule(found)  # a block each would leave none for the one that runs
    assert len(step.output.rows) == 1
    row = step.output.rows[0]
    found.update(step, StepOutput([row], [50], draft_token_ids={row: [1, 2, 3, 4]}))
    found.blocks.allocate_one()  # there is none to be had
    assert schedule(found).output.draft_token_ids == {}
    assert found.num_preemptions == 0


def test_a_preempted_request_forgets_its_drafts() -> None:
    found = scheduler(num_blocks=3, block_size=4, max_num_batched_tokens=8)
    one, other = request("one", length=4), request("other", length=3)
    found.add(one)
    found.add(other)
    step = schedule(found)
    rows = step.output.rows
    assert len(rows) == 2
    found.update(step, StepOutput(rows, [50, 50], draft_token_ids={rows[1]: [51]}))
    found.blocks.allocate_one()
    output = schedule(found).output
    assert (output.rows, found.num_preemptions) == ([rows[0]], 1)
    assert other.draft_token_ids == ()
    assert other.num_tokens == len(other.token_ids) == 4


def test_blocks_are_remembered_only_for_accepted_tokens() -> None:
    found, asked = scheduler(), request(length=3)
    step = start(found, asked, [51, 52, 53, 54])
    assert found.blocks.num_cached == 0
    row = asked.row
    found.update(step, StepOutput([row], [51], further={row: FurtherTokens([60])}))
    assert found.blocks.num_cached == 1
    later = Request("later", [1, 2, 3, 50, 9], SamplingParams(), seed=0, limit=20)
    found.add(later)
    assert schedule(found).output.new_requests[0].num_computed_tokens == 4


def test_what_was_accepted_after_the_end_is_dropped() -> None:
    found, asked = scheduler(), request(stop_token_ids=[52], logprobs=0)
    entries = [TokenLogprobs((token,), (-1.0,), 1) for token in (50, 51, 52, 53)]
    found.add(asked)
    step = schedule(found)
    row = step.output.rows[0]
    found.update(step, StepOutput([row], [50], {row: entries[0]}, draft_token_ids={row: [51, 52, 53]}))
    step = schedule(found)
    further = {row: FurtherTokens([52, 53], entries[2:])}
    news = found.update(step, StepOutput([row], [51], {row: entries[1]}, further=further))
    assert (news, asked.finish_reason, asked.stop_reason) == ([asked], "stop", 52)
    assert asked.token_ids[3:] == [50, 51, 52]
    assert asked.logprobs == entries[:3]
    assert found.blocks.num_free == found.blocks.num_blocks


def test_an_engine_that_drafts_and_aborts_in_between() -> None:
    engine = SyncEngine(num_speculative_tokens=4, num_blocks=64, max_steps_in_flight=2)
    requests = [make_request(str(i), [i + 1] * 5, max_tokens=30) for i in range(8)]
    for asked in requests:
        engine.scheduler.add(asked)
    for _ in range(4):
        engine.step()
    engine.scheduler.abort(requests[1])
    engine.run()
    engine.check_idle()
    for asked in requests[:1] + requests[2:]:
        assert_solo(asked)
    stats = engine.scheduler.draft_stats
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    # Fewer steps than tokens: that is what drafts are for.
    assert len(engine.runner.trace.steps) < sum(len(asked.token_ids) - 5 for asked in requests) / 3


# --- Drafts on the device: their number is known before the step is read


ON_DEVICE = DeviceDrafts(4)


def started_ahead(found: Scheduler, asked: Request) -> tuple[ScheduledStep, ScheduledStep, ScheduledStep]:
    """The step of its prompt, and two that verify drafts, none of them read."""
    found.add(asked)
    return schedule(found), schedule(found), schedule(found)


def ahead(**changes: int) -> Scheduler:
    return scheduler(num_device_drafts=4, **changes)


def test_steps_go_ahead_by_the_most_that_those_before_may_yield() -> None:
    found, asked = ahead(), request()
    prompt, first, second = started_ahead(found, asked)
    row = asked.row
    for step, computed in ((first, 3), (second, 8)):
        output = step.output
        assert output.draft_token_ids == {row: ON_DEVICE}
        assert (output.num_tokens, output.num_computed_tokens) == ([5], [computed])
        assert (output.samples, output.num_decodes) == ([True], 0)
    assert (asked.num_tokens, asked.num_computed_tokens, asked.capacity) == (14, 13, 16)

    found.update(prompt, StepOutput([row], [50], draft_token_ids={row: ON_DEVICE}))
    assert asked.draft_token_ids == ()  # two steps have them already
    found.update(first, StepOutput([row], [51], further={row: FurtherTokens([52])}))
    assert (asked.token_ids[3:], asked.num_tokens, asked.num_computed_tokens) == ([50, 51, 52], 11, 10)
    third = schedule(found)
    assert third.output.num_computed_tokens == [10]
    found.update(second, StepOutput([row], [53], draft_token_ids={row: ON_DEVICE}))
    assert (asked.num_tokens, asked.num_computed_tokens) == (12, 11)
    found.update(third, StepOutput([row], [54], draft_token_ids={row: ON_DEVICE}))
    assert (asked.num_tokens, asked.num_computed_tokens) == (8, 7)
    assert asked.draft_token_ids == ON_DEVICE
    assert schedule(found).output.num_computed_tokens == [7]
    stats = found.draft_stats
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (3, 12, 1)


def test_a_request_near_its_end_is_read_first() -> None:
    found, asked = ahead(), request(limit=13)
    found.add(asked)
    prompt, first = schedule(found), schedule(found)  # to 9 tokens at most, and with 5 more beyond 13
    assert found.schedule() is None
    row = asked.row
    found.update(prompt, StepOutput([row], [50], draft_token_ids={row: ON_DEVICE}))
    assert found.schedule() is None
    found.update(first, StepOutput([row], [51], draft_token_ids={row: ON_DEVICE}))
    output = schedule(found).output
    assert (output.num_tokens, output.num_computed_tokens) == ([5], [4])


def test_steps_ahead_preempt_nobody_and_take_no_other_ones_tokens() -> None:
    found = ahead(num_blocks=4, block_size=4, max_num_batched_tokens=9)
    one, other = request("one", length=2), request("other", length=2)
    found.add(one)
    found.add(other)
    schedule(found)
    assert [one.capacity, other.capacity] == [4, 4]
    output = schedule(found).output  # 5 tokens each, and one is left for each that runs
    assert output.rows == [one.row]
    found.blocks.allocate_one()
    assert found.schedule() is None
    assert found.num_preemptions == 0


def test_a_grammar_is_read_first() -> None:
    engine = SyncEngine(num_speculative_tokens=4, drafts_on_device=True, max_steps_in_flight=2)
    plain, structured = make_request("plain", [1], max_tokens=40), counting_request("structured", [1, 2])
    for asked in (plain, structured):
        engine.scheduler.add(asked)
    engine.run()
    rows = [len(step.rows) for step in engine.runner.trace.steps]
    assert {1, 2} <= set(rows)
    assert_solo(plain)


def test_blocks_are_remembered_only_for_tokens_that_were_read() -> None:
    found, asked = ahead(), request(length=3)
    prompt, first, second = started_ahead(found, asked)
    row = asked.row
    found.update(prompt, StepOutput([row], [50], draft_token_ids={row: ON_DEVICE}))
    assert found.blocks.num_cached == 0
    found.update(first, StepOutput([row], [51], further={row: FurtherTokens([52, 53])}))
    assert (len(asked.token_ids), found.blocks.num_cached) == (7, 1)
    found.update(second, StepOutput([row], [54]))
    assert (asked.num_computed_tokens, found.blocks.num_cached) == (7, 1)


def test_windows_and_micro_batches_go_by_what_was_read() -> None:
    assert not ahead().reads_first
    for changes in ({"window": 3}, {"num_device_drafts": 0}):
        assert scheduler(**{"num_device_drafts": 4, **changes}).reads_first
    parted = ahead(num_micro_batches=2)
    started = request()
    parted.add(started)
    schedule(parted)
    assert parted.schedule() is None


def test_an_engine_whose_device_drafts_is_one_step_ahead() -> None:
    engine = SyncEngine(
        num_speculative_tokens=4, drafts_on_device=True, num_blocks=14, max_num_seqs=6, max_steps_in_flight=2
    )
    requests = [make_request(str(i), [i + 1] * 5, max_tokens=25 + i, ignore_eos=True) for i in range(8)]
    for asked in requests:
        engine.scheduler.add(asked)
    unread_before = 0
    while engine.scheduler.num_unfinished:
        engine.step()
        unread_before += bool(engine.in_flight) and bool(engine.in_flight[-1][0].output.draft_token_ids)
    engine.run()
    engine.check_idle()
    for asked in requests:
        assert_solo(asked)
    assert unread_before > 20
    assert engine.scheduler.num_preemptions > 0
    stats = engine.scheduler.draft_stats
    assert stats.num_draft_tokens >= sum(asked.num_draft_tokens for asked in requests) > 0


def test_drafts_that_nobody_knows_are_never_read() -> None:
    drafts = DeviceDrafts(3)
    assert (len(drafts), len(drafts[:2]), drafts[:2]) == (3, 2, DeviceDrafts(2))
    assert pickle.loads(pickle.dumps(drafts)) == drafts
    with pytest.raises(RuntimeError, match="the ids of 3 drafts"):
        list(drafts)
    known = DeviceDrafts(2, lambda: [7, 8, 9])
    assert (list(known), known[1], list(known[:1])) == ([7, 8], 8, [7])
    assert pickle.loads(pickle.dumps(known)) == [7, 8]


def test_stats_of_drafts() -> None:
    stats = DraftStats.zero(3)
    assert math.isnan(stats.acceptance_rate)
    assert math.isnan(stats.mean_acceptance_length)
    stats.add(3, 2)
    stats.add(1, 0)
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (2, 4, 2)
    assert stats.num_accepted_tokens_per_pos == [1, 1, 0]
    assert (stats.acceptance_rate, stats.mean_acceptance_length) == (0.5, 2.0)
    before = stats.copy()
    stats.add(3, 3)
    assert before.num_accepted_tokens_per_pos == [1, 1, 0]
