"""V1's host work per decode step on the device, counted: it may not grow unnoticed.

As in `tests/engine/test_host_path.py`, calls are counted, not timed. What a captured graph would do is left
out: a graph that is replayed costs the host one call, whatever the model.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from dodona.runners.device.graphs import FixedSizes, FixedStep
from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1 import device_serving
from dodona.runners.v1.runner import V1Runner
from tests.v1.driver import make_runner

STEPS = 8
MOST = {"python": 60, "c": 37}
"""Calls of Python and of C functions per step, of any batch; little above what was counted when they were
set."""


class NoGraphs:
    """In the place of captured graphs: a replay does nothing."""

    def __init__(self, size: int) -> None:
        self.sizes = FixedSizes((size,), ())
        self.replays = 0

    def replay(self, step: FixedStep) -> None:
        self.replays += 1


def decode(rows: int, computed: int, new: bool = False) -> SchedulerOutput:
    """A step in which all rows decode."""
    requests = [
        NewRequest(
            request_id=f"row-{row}", row=row, token_ids=(3,) * (computed + 1), num_prompt_tokens=1,
            num_computed_tokens=computed, block_ids=range(4 * row, 4 * row + 4),
            sampling_params=SamplingParams(temperature=0.0), seed=row,
        )
        for row in range(rows)
    ]  # fmt: skip
    return SchedulerOutput(
        step=computed, freed_rows=(), new_requests=requests if new else (), new_blocks=(),
        rows=list(range(rows)), num_tokens=[1] * rows, num_computed_tokens=[computed] * rows,
        samples=[True] * rows, num_decodes=rows,
    )  # fmt: skip


def calls_per_step(runner: V1Runner, rows: int) -> dict[str, float]:
    """Mean calls in steady steps of decodes, two under way."""
    serving = runner._on_device
    assert serving is not None
    graphs: Any = NoGraphs(rows)
    serving.steps.use_graphs(graphs)
    counts = {"python": 0, "c": 0}

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            counts["python"] += 1
        elif event == "c_call":
            counts["c"] += 1

    def step(computed: int, new: bool = False) -> Any:
        runner.execute_model(decode(rows, computed, new))
        return runner.sample_tokens()

    pending = [step(1, new=True), step(2)]
    steps = [decode(rows, 3 + i) for i in range(STEPS)]
    before = graphs.replays
    for output in steps:
        oldest = pending.pop(0)
        sys.setprofile(count)
        try:
            oldest.result()
            runner.execute_model(output)
            newest = runner.sample_tokens()
        finally:
            sys.setprofile(None)
        pending.append(newest)
    for left in pending:
        left.result()
    runner.execute_model(SchedulerOutput(0, list(range(rows)), (), (), (), (), (), (), 0))
    runner.sample_tokens().result()
    assert graphs.replays - before == STEPS
    return {name: total / STEPS for name, total in counts.items()}


def test_calls_per_decode_step_are_bounded(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the model nor the number of rows matters to the host. Lower the bounds when it does less;
    before raising them, look for a way to do the new work on the device."""
    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: True)
    monkeypatch.setattr(device_serving, "check_device_steps", lambda *args, **kwargs: 0.0)
    settings = {"max_num_seqs": 64, "max_model_len": 64}
    runner = make_runner(tiny_models.path("llama"), num_blocks=256, **settings)
    few, many = calls_per_step(runner, 2), calls_per_step(runner, 64)
    for found in (few, many):
        assert found["python"] <= MOST["python"]
        assert found["c"] <= MOST["c"]
    assert many == few == calls_per_step(runner, 2)


MOST_ON_THE_HOST = {"step": 95, "row": 20}
"""Calls of the project's own Python functions in a step that the host lays out, and more for each row."""


def own_calls_per_step(runner: V1Runner, rows: int) -> float:
    """Mean calls of the project's Python functions in steady steps of decodes on the host."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call" and "dodona" in frame.f_globals.get("__name__", "")

    # From the first token on: nothing may be read from the KV cache that was not written to it.
    steps = [decode(rows, i, new=i == 0) for i in range(STEPS + 1)]
    for number, output in enumerate(steps):
        sys.setprofile(note if number else None)
        try:
            runner.execute_model(output)
            runner.sample_tokens().result()
        finally:
            sys.setprofile(None)
    runner.execute_model(SchedulerOutput(0, list(range(rows)), (), (), (), (), (), (), 0))
    runner.sample_tokens().result()
    return count / STEPS


def test_calls_of_a_step_on_the_host_are_bounded(tiny_models) -> None:
    """What is done for drafts, grammars or adapters that a step doesn't have would show here."""
    runner = make_runner(tiny_models.path("llama", num_hidden_layers=1), num_blocks=256, max_model_len=64)
    few, many = own_calls_per_step(runner, 2), own_calls_per_step(runner, 34)
    per_row = (many - few) / 32
    assert per_row <= MOST_ON_THE_HOST["row"]
    assert few - 2 * per_row <= MOST_ON_THE_HOST["step"]
