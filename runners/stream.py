"""One request's outputs as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType

from dodona.runners.engine.assembler import OutputAssembler
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.events import Event
from dodona.runners.engine.request import Request
from dodona.runners.outputs import RequestOutput


class OutputStream(Iterator[RequestOutput]):
    """Iterator over what is new of a request; one that is closed, or dropped, before its end aborts the
    request.

    Raises EngineDeadError when the engine ends before the request does. Ctrl-C while waiting ends the engine.
    """

    def __init__(
        self, engine: Engine, requests: Sequence[Request], assembler: OutputAssembler, *, keep_alive: object
    ) -> None:
        """`keep_alive` is what would end the engine if it were collected while the stream goes on."""
        self.request_id = requests[0].parent_id
        self._engine = engine
        self._assembler = assembler
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._closed = False
        self._keep_alive = keep_alive
        for request in requests:
            request.events = self._events
            request.streaming = True
        engine.submit(requests)

    def __next__(self) -> RequestOutput:
        if self._closed:
            raise StopIteration
        try:
            progress = self._events.get()
        except KeyboardInterrupt as interrupt:
            self._closed = True
            self._engine.shutdown(interrupt)
            raise
        if progress is None:
            self._closed = True
            raise self._engine.dead_error()
        output = self._assembler.add(progress)
        self._closed = self._assembler.finished
        return self._assembler.output([output])

    def close(self) -> None:
        """Abort the request unless it is finished. Iteration is over."""
        if not self._closed:
            self._closed = True
            self._engine.abort(self.request_id)

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # not where __init__ raised
            self.close()
