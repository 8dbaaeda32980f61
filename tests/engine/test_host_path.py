"""The host's work per decode step, counted: it may not grow unnoticed.

Calls of Python functions in the engine's thread are counted, not timed, so the figures are the same on every
machine. The runner here does nothing, so they are the engine's own: schedule, update, deliver.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest

from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.interface import SchedulerOutput, StepOutput
from dodona.runners.sampling.params import SamplingParams

BLOCK_SIZE = 16
CONSTANT = 30
"""Most calls per step that no row causes, of Python and of C functions each."""

COUNTED_STEPS = 4 * BLOCK_SIZE
"""Every row begins a new block as often as every other in so many steps."""


@dataclass
class Counts:
    """Calls in the engine's thread since it was installed there."""

    python: int = 0
    c: int = 0

    def install(self) -> None:
        def count(frame: FrameType, event: str, argument: Any) -> None:
            if event == "call":
                self.python += 1
            elif event == "c_call":
                self.c += 1

        sys.setprofile(count)


class InstantPending:
    def __init__(self, output: StepOutput) -> None:
        self.output = output

    def result(self) -> StepOutput:
        return self.output


@dataclass
class InstantRunner:
    """Samples token 7 for each row at once, and notes the counts as each step of a full batch begins.

    With `drafts`, so many are made on the device for each row, and none is accepted."""

    batch: int
    drafts: int = 0
    max_steps_in_flight: int = 2
    counts: Counts = field(default_factory=Counts)
    marks: list[tuple[int, int]] = field(default_factory=list)
    output: StepOutput | None = None

    def execute_model(self, step: SchedulerOutput) -> None:
        steady = len(step.draft_token_ids) if self.drafts else step.num_decodes
        if steady == self.batch and not step.new_requests:
            self.marks.append((self.counts.python, self.counts.c))
        rows = step.rows if steady == len(step.rows) else _sampling_rows(step)
        self.output = StepOutput(rows, [7] * len(rows))
        if self.drafts:
            proposed = dict.fromkeys(rows, DeviceDrafts(self.drafts))
            self.output = StepOutput(rows, [7] * len(rows), draft_token_ids=proposed)

    def sample_tokens(self, grammar_output: Any = None) -> InstantPending:
        assert grammar_output is None  # no request has a grammar
        assert self.output is not None
        return InstantPending(self.output)

    def shutdown(self) -> None:
        pass


def _sampling_rows(step: SchedulerOutput) -> list[int]:
    return [row for row, samples in zip(step.rows, step.samples, strict=True) if samples]


def calls_per_step(
    batch: int, *, streaming: bool, prefix_caching: bool = False, drafts: int = 0
) -> tuple[float, float]:
    """Mean calls of Python and of C functions per steady decode step, those of the runner here included."""
    runner = InstantRunner(batch, drafts)
    scheduler = Scheduler(
        num_blocks=batch * 16,
        block_size=BLOCK_SIZE,
        max_num_seqs=batch,
        max_num_batched_tokens=8192,
        enable_prefix_caching=prefix_caching,
        num_speculative_tokens=drafts,
        num_device_drafts=drafts,
    )
    engine = Engine(lambda: (runner, scheduler))  # type: ignore[arg-type, return-value]
    try:
        engine.wait_until_ready()
        engine.call(lambda _, __: runner.counts.install())
        events: SimpleQueue[Any] = SimpleQueue()
        requests = []
        for index in range(batch):
            # Prompts of different lengths, so that new blocks are spread over the steps.
            prompt = [index, *range(index % BLOCK_SIZE + 1)]
            limit = len(prompt) + COUNTED_STEPS + 8 + 2 * drafts
            params = SamplingParams(max_tokens=None, ignore_eos=True)
            requests.append(
                Request(
                    f"request-{index}", prompt, params, seed=index, limit=limit,
                    sink=events.put, streaming=streaming,
                )
            )  # fmt: skip
        engine.submit(requests)
        finished = 0
        while finished < batch:
            progress = events.get()
            assert progress is not None, engine.dead_error()
            finished += progress.finish_reason is not None
    finally:
        engine.shutdown()
    assert len(runner.marks) > COUNTED_STEPS
    first, last = runner.marks[0], runner.marks[COUNTED_STEPS]
    return (last[0] - first[0]) / COUNTED_STEPS, (last[1] - first[1]) / COUNTED_STEPS


@pytest.mark.parametrize(
    ("streaming", "prefix_caching", "python_per_row", "c_per_row"),
    [
        # One call per row appends its token; a sixteenth of the rows needs a block.
        pytest.param(False, False, 1.2, 4.5, id="plain"),
        pytest.param(False, True, 1.5, 4.9, id="prefix-caching"),
        # A row that streams has news in each step.
        pytest.param(True, False, 5.3, 7.5, id="streaming"),
    ],
)
@pytest.mark.parametrize("batch", [64, 256])
def test_calls_per_decode_step_are_bounded(
    batch: int, streaming: bool, prefix_caching: bool, python_per_row: float, c_per_row: float
) -> None:
    """The bounds are little above what was counted when they were set. Lower them when the engine does less;
    before raising one, look for a way to do the new work once per step, or on the device."""
    python, c = calls_per_step(batch, streaming=streaming, prefix_caching=prefix_caching)
    assert python <= CONSTANT + python_per_row * batch
    assert c <= CONSTANT + c_per_row * batch


@pytest.mark.parametrize("batch", [1, 64])
def test_calls_per_step_with_drafts_on_the_device_are_bounded(batch: int) -> None:
    """The step ahead, and what is taken back when it is read."""
    python, c = calls_per_step(batch, streaming=False, drafts=4)
    assert python <= CONSTANT + 7.6 * batch
    assert c <= CONSTANT + 12.6 * batch


def test_counts_are_the_same_each_time() -> None:
    assert calls_per_step(8, streaming=False) == calls_per_step(8, streaming=False)


def test_counting_sees_one_call_more_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard would notice work that was added for each row."""
    before = calls_per_step(16, streaming=False)
    append = Request.append

    def slower_append(request: Request, token_id: int) -> int:
        return append(request, token_id)

    monkeypatch.setattr(Request, "append", slower_append)
    after = calls_per_step(16, streaming=False)
    assert after[0] - before[0] == pytest.approx(16)
