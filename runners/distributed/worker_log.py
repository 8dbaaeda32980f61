"""What a worker's process prints: lines of its log, with levels that the engine's process reads again."""

from __future__ import annotations

import logging

_FORMAT = "%(levelname)s %(name)s: %(message)s"
_LEVELS = {logging.getLevelName(level): level for level in (logging.WARNING, logging.ERROR, logging.CRITICAL)}


def configure() -> None:
    """In a worker: print warnings and what is worse."""
    logging.basicConfig(format=_FORMAT, level=logging.WARNING)


def parse(line: str) -> tuple[int, str]:
    """The level of a line that a worker printed, and its text without it; INFO where it is not of its log."""
    name, _, text = line.partition(" ")
    level = _LEVELS.get(name)
    return (logging.INFO, line) if level is None else (level, text)
