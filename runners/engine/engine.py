"""The engine's thread: it takes commands, runs steps, and hands out news.

    schedule -> execute_model -> sample_tokens -> (later) read the result -> update

Up to `runner.max_steps_in_flight` steps are under way before the oldest is read. Only this thread calls the
runner and the scheduler; other threads put commands into its inbox and wait at their requests' event
queues.
"""

from __future__ import annotations

import gc
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dodona.runners.engine.events import Progress
from dodona.runners.engine.grammar import grammar_output
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import ScheduledStep, Scheduler
from dodona.runners.errors import EngineDeadError, InvalidRequestError
from dodona.runners.interface import PendingOutput, Runner

logger = logging.getLogger("dodona.engine")


@dataclass(frozen=True, slots=True)
class _Add:
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class _Abort:
    parent_id: str


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Runner, Scheduler], Any]
    future: Future[Any]
    alone: bool


_Command = _Add | _Abort | _Call


class Engine:
    """Runs requests on a runner. All methods may be called from any thread.

    `start` makes the runner, ready to step, and its scheduler; it is called in the engine's thread, as is
    everything else of the runner. After the engine has ended, by `shutdown` or by an error, every method
    that needs it raises EngineDeadError with the cause.
    """

    def __init__(self, start: Callable[[], tuple[Runner, Scheduler]]) -> None:
        self._start = start
        self._wake = threading.Condition()
        """Guards the five below."""
        self._inbox: deque[_Command] = deque()
        self._live: dict[str, list[Request]] = {}
        """Unfinished requests by their parent's id."""
        self._stopping = False
        self._dead = False
        self._cause: BaseException | None = None

        self._todo: deque[_Command] = deque()
        """Commands out of the inbox that are not obeyed yet."""
        self._held: deque[_Command] = deque()
        """Commands that wait until the running requests are finished: the first one wants to be alone."""
        self._in_flight: deque[tuple[ScheduledStep, PendingOutput]] = deque()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="dodona-engine", daemon=True)
        self._thread.start()

    # --- Called from any thread

    def wait_until_ready(self) -> None:
        """Return when the engine can take requests; raises what `start` raised."""
        self._ready.result()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; their news come to `request.events`.

        Raises EngineDeadError, and InvalidRequestError where an id is that of an unfinished request (then
        none is queued).
        """
        by_parent: dict[str, list[Request]] = {}
        for request in requests:
            by_parent.setdefault(request.parent_id, []).append(request)
        with self._wake:
            self._check_alive()
            for parent_id in by_parent:
                if parent_id in self._live:
                    raise InvalidRequestError(f"request id {parent_id!r} is in use by an unfinished request")
            self._live.update(by_parent)
            self._inbox.append(_Add(requests))
            self._wake.notify()

    def abort(self, *request_ids: str) -> None:
        """End these requests with what they have; unknown and finished ones are left alone."""
        with self._wake:
            if not self._dead:
                self._inbox.extend(map(_Abort, request_ids))
                self._wake.notify()

    def call(self, function: Callable[[Runner, Scheduler], Any], *, alone: bool = False) -> Any:
        """Run `function(runner, scheduler)` in the engine's thread between two steps, and return what it
        returns.

        `alone`: only once all requests submitted before are finished; those submitted after wait for it.
        """
        future: Future[Any] = Future()
        with self._wake:
            self._check_alive()
            self._inbox.append(_Call(function, future, alone))
            self._wake.notify()
        return future.result()

    def shutdown(self, cause: BaseException | None = None) -> None:
        """End the engine after the step under way, and wait for that. Idempotent.

        Whoever waits for a request gets EngineDeadError, whose cause is `cause`.
        """
        with self._wake:
            if not self._stopping and not self._dead:
                self._stopping = True
                self._cause = cause
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def dead_error(self) -> EngineDeadError:
        """The error for who comes after the end, or waited for it."""
        if self._cause is None:
            return EngineDeadError("the engine was shut down")
        error = EngineDeadError(f"the engine has ended: {type(self._cause).__name__}: {self._cause}")
        error.__cause__ = self._cause
        return error

    def _check_alive(self) -> None:
        if self._dead or self._stopping:
            raise self.dead_error()

    # --- The engine's thread

    def _run(self) -> None:
        runner: Runner | None = None
        try:
            runner, scheduler = self._start()
            # What is there by now, libraries for the most part, stays; a collection that looks at all of it
            # takes a tenth of a second, in which no step is launched.
            gc.freeze()
            self._ready.set_result(None)
            while self._take_commands(runner, scheduler):
                self._step(runner, scheduler)
        except BaseException as error:
            self._cause = error
            # Its frames would keep the runner's tensors for as long as somebody keeps the error.
            traceback.clear_frames(error.__traceback__)
        self._in_flight.clear()
        gc.unfreeze()  # before the runner looks for what it can give back
        if runner is not None:
            try:
                runner.shutdown()
            except Exception:
                logger.exception("the runner's shutdown failed")
        self._end()

    def _end(self) -> None:
        """Tell everybody who waits."""
        with self._wake:
            self._dead = True
            commands = [*self._held, *self._todo, *self._inbox]
            requests = [request for siblings in self._live.values() for request in siblings]
            self._inbox.clear()
            self._live.clear()
        for request in requests:
            if request.events is not None:
                request.events.put(None)
        for command in commands:
            if isinstance(command, _Call):
                command.future.set_exception(self.dead_error())
        if not self._ready.done():
            self._ready.set_exception(self._cause or self.dead_error())

    def _take_commands(self, runner: Runner, scheduler: Scheduler) -> bool:
        """Obey what is in the inbox, after waiting for it where there is nothing else to do. False: stop."""
        with self._wake:
            while not (
                self._stopping or self._inbox or self._held or self._in_flight or scheduler.num_unfinished
            ):
                self._wake.wait()
            if self._stopping:
                return False
            self._todo.extend(self._inbox)
            self._inbox.clear()
        # A command stays in its queue until it is obeyed, so that an error leaves none unanswered.
        while self._todo:
            command = self._todo[0]
            if isinstance(command, _Abort):
                self._obey_abort(command, scheduler)
            elif self._held or not _may_start(command, scheduler):
                self._held.append(command)
            else:
                self._obey(command, runner, scheduler)
            self._todo.popleft()
        while self._held and _may_start(self._held[0], scheduler):
            self._obey(self._held[0], runner, scheduler)
            self._held.popleft()
        return True

    def _obey(self, command: _Command, runner: Runner, scheduler: Scheduler) -> None:
        if isinstance(command, _Add):
            for request in command.requests:
                if not request.finished:  # not aborted while it was held
                    scheduler.add(request)
        elif isinstance(command, _Call):
            while self._in_flight:
                self._read_oldest(scheduler)
            try:
                result = command.function(runner, scheduler)
            except Exception as error:
                command.future.set_exception(error)
            else:
                command.future.set_result(result)

    def _obey_abort(self, command: _Abort, scheduler: Scheduler) -> None:
        for request in list(self._live.get(command.parent_id, ())):
            if any(isinstance(held, _Add) and request in held.requests for held in self._held):
                request.abort()
            else:
                scheduler.abort(request)
            self._deliver(request)

    def _step(self, runner: Runner, scheduler: Scheduler) -> None:
        step = scheduler.schedule()
        if step is not None:
            runner.execute_model(step.output)
            if step.structured:  # grammars are asked while the forward pass runs
                pending = runner.sample_tokens(grammar_output(step.structured))
            else:
                pending = runner.sample_tokens()
            self._in_flight.append((step, pending))
            if len(self._in_flight) >= runner.max_steps_in_flight:
                self._read_oldest(scheduler)
        elif self._in_flight:
            self._read_oldest(scheduler)
        elif scheduler.num_unfinished:
            raise RuntimeError(f"{scheduler.num_unfinished} requests are unfinished and none can run")

    def _read_oldest(self, scheduler: Scheduler) -> None:
        step, pending = self._in_flight.popleft()
        for request in scheduler.update(step, pending.result()):
            self._deliver(request)

    def _deliver(self, request: Request) -> None:
        progress = Progress.of(request)
        if progress.finish_reason is not None:
            with self._wake:
                siblings = self._live[request.parent_id]
                siblings.remove(request)
                if not siblings:
                    del self._live[request.parent_id]
        if request.events is not None:
            request.events.put(progress)


def _may_start(command: _Command, scheduler: Scheduler) -> bool:
    return not (isinstance(command, _Call) and command.alone and scheduler.num_unfinished)
