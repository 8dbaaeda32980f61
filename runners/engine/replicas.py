"""Several engines that serve one model as one (data parallelism): requests are shared among them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dodona.runners.after_fork import leave_after_fork
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.events import Event, Sink
from dodona.runners.engine.request import Request
from dodona.runners.engine.routing import Route, Router
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineDeadError, InvalidRequestError
from dodona.runners.interface import Runner


class Replicas:
    """Engines with a runner and a scheduler each. It has an `Engine`'s methods, for all of them together.

    starts: make the runner and the scheduler of each replica. They run at the same time.
    give_up: lets those that are not done end soon, with any error.

    What ends one replica ends all, with its cause.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[], tuple[Runner, Scheduler]]],
        *,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._give_up = give_up
        self._router: Router | None = None
        self._lock = threading.Lock()
        """Guards the router, and the three below."""
        self._routes: dict[str, _Routed] = {}
        """Unfinished requests by the id that their caller knows."""
        self._failure: tuple[int, BaseException] | None = None
        """The replica that failed first, and its error."""
        self._engines: list[Engine] = []
        leave_after_fork(self)  # before the engines, which then tell of their end by `_deliver`
        for number, start in enumerate(starts):
            engine = Engine(start, on_failure=partial(self._fail, number))
            with self._lock:
                self._engines.append(engine)
                failure = self._failure
            if failure is not None:
                engine.end(failure[1])

    def wait_until_ready(self) -> None:
        """Return when all replicas can take requests; raises what the first start that failed raised."""
        for engine in self._engines:
            try:
                engine.wait_until_ready()
            except Exception as error:
                with self._lock:
                    failure = self._failure
                if failure is None or failure[1] is error:
                    raise
                raise failure[1] from None  # this one was given up
        kept = self.call_all(
            lambda _, scheduler: scheduler.blocks.num_blocks if scheduler.enable_prefix_caching else 0
        )
        self._router = Router(self.call_all(lambda _, scheduler: scheduler.block_size)[0], kept)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue each request at a replica, all sequences of a prompt at one; see `Engine.submit`."""
        prompts: dict[str, list[Request]] = {}
        for request in requests:
            prompts.setdefault(request.parent_id, []).append(request)
        by_replica: dict[int, list[Request]] = {}
        with self._lock:
            for request_id in prompts:
                if request_id in self._routes:
                    raise InvalidRequestError(f"request id {request_id!r} is in use by an unfinished request")
            for request_id, siblings in prompts.items():
                route = self._route(siblings)
                routed = self._routes[request_id] = _Routed(route, {each.index for each in siblings})
                for each in siblings:
                    each.sink = partial(self._deliver, routed, each.parent_id, each.index, each.sink)
                by_replica.setdefault(route.replica, []).extend(siblings)
        queued: set[int] = set()
        try:
            for replica, chosen in by_replica.items():
                self._engines[replica].submit(chosen)
                queued.add(replica)
        except BaseException:
            for replica, chosen in by_replica.items():
                if replica in queued:
                    self._engines[replica].abort(*(request.parent_id for request in chosen))
                else:
                    with self._lock:
                        for request in chosen:
                            self._release(request.parent_id)
            raise

    def abort(self, *request_ids: str) -> None:
        """End these requests with the tokens that they have; unknown and finished ones are left alone."""
        for engine in self._engines:
            engine.abort(*request_ids)

    def refuse_requests(self, reason: str | None) -> None:
        """From now on `submit` raises EngineAsleepError with the reason; None: requests are taken again."""
        for engine in self._engines:
            engine.refuse_requests(reason)

    def call_all(self, function: Callable[[Runner, Scheduler], Any], *, drain: bool = False) -> list[Any]:
        """`Engine.call` at every replica, at the same time; the results in the replicas' order.

        Raises what the function raised at all of them. Where it failed at some only, they are not alike any
        more, and all end with that error.
        """
        self.check_callable()
        futures = [engine.post(function, drain=drain) for engine in self._engines]
        errors = {number: e for number, future in enumerate(futures) if (e := future.exception()) is not None}
        if 0 < len(errors) < len(futures):
            number, error = next(iter(errors.items()))
            self._fail(number, error)
            raise self.dead_error()
        return [future.result() for future in futures]

    def shutdown(self, cause: BaseException | None = None) -> None:
        """End all engines after their steps under way, and wait for that; see `Engine.shutdown`."""
        for engine in self._engines:
            engine.end(cause)
        # An engine's thread would wait for another one, which may be waiting for it.
        if not any(engine.runs_here for engine in self._engines):
            for engine in self._engines:
                engine.shutdown(cause)

    def dead_error(self) -> EngineDeadError:
        """The error for callers that come after the end, or waited for a request."""
        return self._engines[0 if self._failure is None else self._failure[0]].dead_error()

    def check_callable(self) -> None:
        """See `Engine.check_callable`."""
        for engine in self._engines:
            engine.check_callable()

    def leave_to_parent(self) -> None:
        """In a child process after a fork: the parent's threads may have held the lock."""
        self._lock = threading.Lock()

    # --- Parts

    def _fail(self, number: int, error: BaseException) -> None:
        """One replica has failed, or isn't as the others any more: end all."""
        with self._lock:
            if self._failure is None:
                error.add_note(f"in replica {number} of {len(self._engines)}")
                self._failure = (number, error)
            engines = list(self._engines)
        for engine in engines:
            engine.end(error)
        self._give_up()

    def _route(self, siblings: Sequence[Request]) -> Route:
        if self._router is None:
            raise RuntimeError("submit before wait_until_ready")
        first = siblings[0]
        return self._router.choose(
            first.token_ids,
            [each.limit for each in siblings],
            b"" if first.adapter is None else first.adapter.key,
        )

    def _deliver(self, routed: _Routed, request_id: str, index: int, sink: Sink, event: Event) -> None:
        """Hand news to the request's own sink."""
        if event is None or event.finish_reason is not None:
            with self._lock:
                routed.unfinished.discard(index)
                if not routed.unfinished:
                    self._release(request_id)
        sink(event)

    def _release(self, request_id: str) -> None:
        """Forget a prompt, whose id may be used again. The lock is held."""
        routed = self._routes.pop(request_id, None)
        if routed is not None and self._router is not None:
            self._router.finished(routed.route)


class _Routed:
    """A prompt at its replica."""

    __slots__ = ("route", "unfinished")

    def __init__(self, route: Route, unfinished: set[int]) -> None:
        self.route = route
        self.unfinished = unfinished
        """Numbers of its sequences that go on."""
