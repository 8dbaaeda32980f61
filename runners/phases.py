"""Says in the log how long each part of an engine's start takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from dodona.runners.errors import EngineSetupError

logger = logging.getLogger("dodona.start")

_LOOK_SECONDS = 0.05
"""How often a start that waits for others looks whether it was given up."""


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log at level INFO, once it ends, how many seconds of the host the part took. Parts may be nested: the
    inner one is named first, and the outer one counts it, too."""
    started = time.perf_counter()
    yield
    logger.info("%s: %.1f s", name, time.perf_counter() - started)


def check_not_given_up(given_up: Event | None) -> None:
    """Raise EngineSetupError where nobody waits for the start any more."""
    if given_up is not None and given_up.is_set():
        raise EngineSetupError("the start was given up")


def wait_until(event: Event, given_up: Event | None) -> None:
    """Wait until the event is set. Raises EngineSetupError where nobody waits for the start any more."""
    while not event.wait(_LOOK_SECONDS):
        check_not_given_up(given_up)
