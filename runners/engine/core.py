"""The loop's turn: schedule, launch, read. What the engine's thread does when there are no commands.

schedule -> execute_model -> sample_tokens -> (later) read the result -> update
"""

from __future__ import annotations

import time
from collections import deque

from dodona.runners.engine.grammar import grammar_output
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.engine.step_batch import ScheduledStep
from dodona.runners.interface import PendingOutput, Runner

_POLL_SECONDS = 1e-4
"""Pause after a step without rows: only transfers of KV are under way, and nothing tells of their end."""


class EngineCore:
    """A runner that is ready to step, its scheduler, and the steps under way. Not thread-safe.

    Up to `runner.max_steps_in_flight` steps are under way before the oldest is read; one, where the scheduler
    goes by what was read.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self._most_in_flight = 1 if scheduler.reads_first else runner.max_steps_in_flight
        self._in_flight: deque[tuple[ScheduledStep, PendingOutput]] = deque()

    @property
    def num_in_flight(self) -> int:
        """Steps that were launched and not read."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to launch or to read."""
        return bool(self._in_flight) or not self.scheduler.is_idle

    def step(self) -> list[Request]:
        """Launch the next step; then read the oldest if no more may be under way, or none could be launched.

        Returns the requests with news. Raises what the runner raises, and RuntimeError where requests are
        unfinished and none can run.
        """
        step = self.scheduler.schedule()
        if step is not None:
            if not step.output.rows:
                time.sleep(_POLL_SECONDS)
            self.runner.execute_model(step.output)
            if step.structured:  # their masks are computed while the forward pass runs
                pending = self.runner.sample_tokens(
                    grammar_output(step.structured, step.output.draft_token_ids)
                )
            else:
                pending = self.runner.sample_tokens()
            self._in_flight.append((step, pending))
            if len(self._in_flight) < self._most_in_flight:
                return []
        elif not self._in_flight:
            if self.scheduler.num_unfinished:
                raise RuntimeError(
                    f"{self.scheduler.num_unfinished} requests are unfinished and none can run"
                )
            return []
        return self.read_oldest()

    def read_oldest(self) -> list[Request]:
        """Wait for the oldest step under way; returns the requests with news."""
        step, pending = self._in_flight.popleft()
        return self.scheduler.update(step, pending.result())
