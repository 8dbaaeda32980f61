"""An iterator over the outputs of one request, or of several, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType

from dodona.runners.client import EngineClient
from dodona.runners.engine.assembler import OutputAssembler
from dodona.runners.engine.events import Event
from dodona.runners.outputs import RequestOutput


class OutputStream(Iterator[RequestOutput]):
    """Iterates over the news of its requests, and ends when all are finished. Closing or dropping it before
    that aborts the unfinished ones.

    All requests share one queue, so that a step with news of hundreds of them wakes one thread once. A stream
    keeps its engine alive.

    Raises EngineDeadError when the engine ends before the requests do. Ctrl-C while waiting ends the engine.
    """

    def __init__(
        self,
        client: EngineClient,
        events: SimpleQueue[Event],
        assemblers: Iterable[OutputAssembler],
        *,
        request_ids: Sequence[str],
        refused: Iterable[RequestOutput] = (),
    ) -> None:
        """`assemblers` are those of the submitted requests, whose news come to `events`; `refused` are the
        outputs of prompts that were not admitted, which come first."""
        self.request_ids = tuple(request_ids)
        """The requests' ids, in the order of their prompts."""
        self._client = client
        self._events = events
        self._unfinished = {assembler.request_id: assembler for assembler in assemblers}
        self._refused = deque(refused)
        self._closed = False

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
            self._client.shutdown(interrupt)
            raise
        if progress is None:
            self._closed = True
            raise self._client.dead_error()
        assembler = self._unfinished[progress.request_id]
        news = assembler.add(progress)
        if assembler.finished:
            del self._unfinished[progress.request_id]
            self._closed = not self._unfinished
        return assembler.output([news])

    def close(self) -> None:
        """Abort the unfinished requests. Iteration is over. Returns at once: their ids are free after the
        engine's next step."""
        if not self._closed:
            self._closed = True
            self._client.abort(*self._unfinished)

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # not where __init__ raised
            self.close()
