"""Outputs of one request, or of several, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType

from dodona.runners.engine.assembler import OutputAssembler
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.events import Event
from dodona.runners.outputs import RequestOutput


class OutputStream(Iterator[RequestOutput]):
    """Iterator over what is new of its requests; it ends when all are finished. One that is closed, or
    dropped, before that aborts those that are not.

    All requests have one queue, so that a step that brings news of hundreds wakes one thread once.

    Raises EngineDeadError when the engine ends before the requests do. Ctrl-C while waiting ends the engine.
    """

    def __init__(
        self,
        engine: Engine,
        events: SimpleQueue[Event],
        assemblers: Mapping[str, OutputAssembler],
        *,
        request_ids: Sequence[str],
        refused: Iterable[RequestOutput] = (),
        keep_alive: object,
    ) -> None:
        """`assemblers` are those of the submitted requests by id, whose news come to `events`; `refused` are
        outputs that are there already. `keep_alive` is what would end the engine if it were collected while
        the stream goes on."""
        self.request_ids = tuple(request_ids)
        """The requests' ids, in the order of their prompts."""
        self._engine = engine
        self._events = events
        self._unfinished = dict(assemblers)
        self._refused = deque(refused)
        self._closed = False
        self._keep_alive = keep_alive

    @property
    def request_id(self) -> str:
        """The only request's id, or the first one's."""
        return self.request_ids[0]

    def __next__(self) -> RequestOutput:
        if self._closed:
            raise StopIteration
        if self._refused:
            output = self._refused.popleft()
            self._closed = not self._refused and not self._unfinished
            return output
        try:
            progress = self._events.get()
        except KeyboardInterrupt as interrupt:
            self._closed = True
            self._engine.shutdown(interrupt)
            raise
        if progress is None:
            self._closed = True
            raise self._engine.dead_error()
        request_id = progress.request.parent_id
        assembler = self._unfinished[request_id]
        news = assembler.add(progress)
        if assembler.finished:
            del self._unfinished[request_id]
            self._closed = not self._unfinished
        return assembler.output([news])

    def close(self) -> None:
        """Abort the requests that are not finished. Iteration is over."""
        if not self._closed:
            self._closed = True
            self._engine.abort(*self._unfinished)

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # not where __init__ raised
            self.close()
