"""The engine's thread: it takes commands, runs steps, and hands news to the requests' sinks.

Only this thread calls the runner and the scheduler; other threads put commands into its inbox.
"""

from __future__ import annotations

import gc
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dodona.runners.after_fork import leave_after_fork
from dodona.runners.engine.core import EngineCore
from dodona.runners.engine.events import Event
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import (
    EngineAsleepError,
    EngineDeadError,
    EngineThreadError,
    InvalidRequestError,
)
from dodona.runners.interface import Runner

logger = logging.getLogger("dodona.engine")


@dataclass(frozen=True, slots=True)
class _Add:
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class _Abort:
    requests: Sequence[Request]
    """Those that had the id when the abort was asked for; the id may belong to another one by now."""


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Runner, Scheduler], Any]
    future: Future[Any]
    drain: bool


_Command = _Add | _Abort | _Call


@dataclass(frozen=True, slots=True)
class _End:
    """The engine ends, or has ended."""

    cause: BaseException | None
    """What ended it; None for a plain shutdown."""


class Engine:
    """Runs requests on a runner. All methods may be called from any thread.

    `start` makes the runner, ready to step, and its scheduler; it is called in the engine's thread, as is
    everything else of the runner. After the engine has ended, by `shutdown` or by an error, every method
    that needs it raises EngineDeadError with the cause.

    on_failure: called with an error that ends the engine, in its thread, before anybody else hears of it.
    """

    def __init__(
        self,
        start: Callable[[], tuple[Runner, Scheduler]],
        *,
        on_failure: Callable[[BaseException], object] = lambda error: None,
    ) -> None:
        self._start = start
        self._on_failure = on_failure
        self._wake = threading.Condition()
        """Guards the four below."""
        self._inbox: deque[_Command] = deque()
        self._unfinished: dict[str, list[Request]] = {}
        """Unfinished requests by the id that their caller knows."""
        self._end: _End | None = None
        self._refusal: str | None = None
        """Why no requests are taken at present."""

        self._taken: deque[_Command] = deque()
        """Commands out of the inbox that are not executed yet. The engine's thread alone uses these two."""
        self._deferred: deque[_Command] = deque()
        """Commands that wait until the running requests are finished: a call that drains, then all that came
        after it."""
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="dodona-engine", daemon=True)
        leave_after_fork(self)
        self._thread.start()

    # --- Called from any thread

    def wait_until_ready(self) -> None:
        """Return when the engine can take requests; raises what `start` raised."""
        self._ready.result()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; their news go to `request.sink`. From here on the engine's thread owns them.

        Raises EngineDeadError, EngineAsleepError while requests are refused, and InvalidRequestError where an
        id is that of an unfinished request (then none is queued).
        """
        by_id: dict[str, list[Request]] = {}
        for request in requests:
            by_id.setdefault(request.parent_id, []).append(request)
        with self._wake:
            self.check_callable()
            if self._refusal is not None:
                raise EngineAsleepError(self._refusal)
            for request_id in by_id:
                if request_id in self._unfinished:
                    raise InvalidRequestError(f"request id {request_id!r} is in use by an unfinished request")
            self._unfinished.update(by_id)
            self._inbox.append(_Add(requests))
            self._wake.notify()

    def abort(self, *request_ids: str) -> None:
        """End these requests with the tokens that they have; unknown and finished ones are left alone."""
        with self._wake:
            if self._end is None:
                known = (request_id for request_id in request_ids if isinstance(request_id, str))
                found = (self._unfinished.get(request_id) for request_id in known)
                self._inbox.extend(_Abort(tuple(requests)) for requests in found if requests)
                self._wake.notify()

    def refuse_requests(self, reason: str | None) -> None:
        """From now on `submit` raises EngineAsleepError with the reason; None: it takes requests again.

        Those submitted before are not concerned.
        """
        with self._wake:
            self._refusal = reason

    def call(self, function: Callable[[Runner, Scheduler], Any], *, drain: bool = False) -> Any:
        """Run `function(runner, scheduler)` in the engine's thread between two steps, and return its result.

        `drain`: only once all requests submitted before are finished; those submitted after wait for it.
        """
        return self.post(function, drain=drain).result()

    def call_all(self, function: Callable[[Runner, Scheduler], Any], *, drain: bool = False) -> list[Any]:
        """`call`, as several engines have it: the results of all, here of one."""
        return [self.call(function, drain=drain)]

    def post(self, function: Callable[[Runner, Scheduler], Any], *, drain: bool = False) -> Future[Any]:
        """`call` without waiting for the result."""
        future: Future[Any] = Future()
        with self._wake:
            self.check_callable()
            self._inbox.append(_Call(function, future, drain))
            self._wake.notify()
        return future

    def shutdown(self, cause: BaseException | None = None) -> None:
        """End the engine after the step under way, and wait for that. Idempotent.

        Whoever waits for a request gets EngineDeadError, whose cause is `cause`.
        """
        self.end(cause)
        if not self.runs_here:
            self._thread.join()

    def end(self, cause: BaseException | None) -> None:
        """`shutdown` without waiting."""
        with self._wake:
            if self._end is None:
                self._end = _End(cause)
            self._wake.notify()

    @property
    def runs_here(self) -> bool:
        """Whether the current thread is the engine's."""
        return threading.current_thread() is self._thread

    def dead_error(self) -> EngineDeadError:
        """The error for callers that come after the engine's end, or waited for a request."""
        cause = None if self._end is None else self._end.cause
        if cause is None:
            return EngineDeadError("the engine was shut down")
        error = EngineDeadError(f"the engine has ended: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return error

    def check_callable(self) -> None:
        """Raises EngineDeadError, and EngineThreadError in the engine's own thread."""
        if self._end is not None:
            raise self.dead_error()
        if self.runs_here:
            raise EngineThreadError(
                "the engine's own thread would wait for itself: this was called from a function that runs in "
                "it, such as the sink of a request; call it from another thread"
            )

    def leave_to_parent(self) -> None:
        """In a child process after a fork: the thread is the parent's, and so is what it holds."""
        self._wake = threading.Condition()  # the parent's threads may have held the other
        self._end = _End(
            RuntimeError("the engine belongs to another process; make a new LLM after fork, or use spawn")
        )
        requests = [request for siblings in self._unfinished.values() for request in siblings]
        self._inbox.clear()
        self._unfinished.clear()
        for request in requests:
            _send(request, None)

    # --- The engine's thread

    def _run(self) -> None:
        runner: Runner | None = None
        scheduler: Scheduler | None = None
        try:
            runner, scheduler = self._start()
            self._serve(EngineCore(runner, scheduler))
        except BaseException as error:
            with self._wake:
                self._end = _End(error)
            self._on_failure(error)
            # Its frames would keep the runner's tensors for as long as somebody keeps the error.
            traceback.clear_frames(error.__traceback__)
        gc.unfreeze()  # before the runner looks for what it can give back
        if runner is not None:
            _shut_down("runner", runner.shutdown)
        if scheduler is not None:
            _shut_down("KV connector", scheduler.transfers.connector.shutdown)
        self._notify_waiting()

    def _serve(self, core: EngineCore) -> None:
        # What exists by now, libraries for the most part, stays; a garbage collection that looks at all of it
        # takes a tenth of a second, in which no step is launched.
        gc.freeze()
        self._ready.set_result(None)
        while self._execute_commands(core):
            self._deliver(core.step())

    def _notify_waiting(self) -> None:
        """Tell everybody who waits that the engine has ended."""
        with self._wake:
            commands = [*self._deferred, *self._taken, *self._inbox]
            requests = [request for siblings in self._unfinished.values() for request in siblings]
            self._inbox.clear()
            self._unfinished.clear()
        for request in requests:
            _send(request, None)
        for command in commands:
            if isinstance(command, _Call):
                command.future.set_exception(self.dead_error())
        if not self._ready.done():
            cause = None if self._end is None else self._end.cause
            self._ready.set_exception(cause or self.dead_error())

    def _execute_commands(self, core: EngineCore) -> bool:
        """Execute the inbox's commands; wait for one if there is nothing else to do. Returns False to end."""
        with self._wake:
            while not (self._end is not None or self._inbox or self._deferred or core.has_work):
                self._wake.wait()
            if self._end is not None:
                return False
            self._taken.extend(self._inbox)
            self._inbox.clear()
        # A command stays in its queue until it was executed, so that an error leaves no caller waiting.
        while self._taken:
            command = self._taken[0]
            if isinstance(command, _Abort):
                self._execute_abort(command, core.scheduler)
            elif self._deferred or not _may_start(command, core.scheduler):
                self._deferred.append(command)
            else:
                self._execute(command, core)
            self._taken.popleft()
        while self._deferred and _may_start(self._deferred[0], core.scheduler):
            self._execute(self._deferred[0], core)
            self._deferred.popleft()
        return True

    def _execute(self, command: _Command, core: EngineCore) -> None:
        if isinstance(command, _Add):
            for request in command.requests:
                if not request.finished:  # not aborted while it was deferred
                    core.scheduler.add(request)
        elif isinstance(command, _Call):
            while core.num_in_flight:
                self._deliver(core.read_oldest())
            try:
                result = command.function(core.runner, core.scheduler)
            except Exception as error:
                command.future.set_exception(error)
            else:
                command.future.set_result(result)

    def _execute_abort(self, command: _Abort, scheduler: Scheduler) -> None:
        siblings = [request for request in command.requests if not request.finished]
        for request in siblings:
            if any(isinstance(other, _Add) and request in other.requests for other in self._deferred):
                request.abort()
            else:
                scheduler.abort(request)
        self._deliver(siblings)

    def _deliver(self, requests: Iterable[Request]) -> None:
        """Send their news to the sinks of these requests."""
        for request in requests:
            progress = request.take_progress()
            if progress.finish_reason is not None:
                with self._wake:
                    siblings = self._unfinished[request.parent_id]
                    siblings.remove(request)
                    if not siblings:
                        del self._unfinished[request.parent_id]
            if not _send(request, progress):
                self.abort(request.parent_id)


def _may_start(command: _Command, scheduler: Scheduler) -> bool:
    return not (isinstance(command, _Call) and command.drain and not scheduler.is_idle)


def _shut_down(what: str, shutdown: Callable[[], None]) -> None:
    """An error is logged: whoever waits for the engine must hear of its end all the same."""
    try:
        shutdown()
    except Exception:
        logger.exception("the shutdown of the %s failed", what)


def _send(request: Request, event: Event) -> bool:
    """Whether the request's sink took the event. A sink that raises harms nobody but its own request."""
    try:
        request.sink(event)
    except Exception:
        logger.exception("the sink of request %s failed", request.parent_id)
        return False
    return True
