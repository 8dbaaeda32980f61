"""Waits for the outputs of many prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TypeVar

from dodona.runners.client import EngineClient
from dodona.runners.engine.events import Event, Progress
from dodona.runners.progress_bar import progress_bar

T = TypeVar("T")

_REDRAW_AFTER = 0.5
"""Seconds without news after which the progress bar is drawn anew: the first prompts may take long."""


@contextmanager
def ended_by_ctrl_c(client: EngineClient) -> Iterator[None]:
    """End the engine where Ctrl-C interrupts the block."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        client.shutdown(interrupt)
        raise


def wait_for_outputs(
    client: EngineClient,
    events: SimpleQueue[Event],
    request_ids: Iterable[str],
    take: Callable[[Progress], tuple[int, T] | None],
    refused: Mapping[int, T],
    *,
    use_tqdm: bool | None,
) -> list[T]:
    """The outputs of all prompts, in the prompts' order. After an error none of the prompts goes on.

    Args:
        client: of the engine.
        events: where the news of the submitted requests come.
        request_ids: the submitted requests, one for each prompt that isn't refused.
        take: news → the index of the prompt that is finished with it, and its output; None where it goes on.
        refused: index of a prompt that wasn't submitted → its output.
        use_tqdm: see `progress_bar`.

    Raises EngineDeadError when the engine ends before the requests do.
    """
    results, waiting = dict(refused), set(request_ids)
    total = len(results) + len(waiting)
    try:
        with progress_bar(total, use_tqdm) as bar:
            bar.update(len(results))
            while waiting:
                try:
                    progress = events.get(timeout=_REDRAW_AFTER)
                except Empty:
                    bar.update(0)
                    continue
                if progress is None:
                    raise client.dead_error()
                finished = take(progress)
                if finished is not None:
                    index, results[index] = finished
                    waiting.remove(progress.request_id)
                    bar.update(1)
    except BaseException:
        client.abort(*waiting)
        raise
    return [results[index] for index in range(total)]
