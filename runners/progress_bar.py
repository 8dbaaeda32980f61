"""A progress bar over prompts."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Protocol

DELAY = 2.0
"""Seconds that work must last before a bar shows by default."""


class ProgressBar(Protocol):
    """The part of tqdm's interface that is used here."""

    def update(self, count: int) -> object:
        """Count `count` more prompts as done, and draw the bar."""


class _NoBar:
    def update(self, count: int) -> None:
        """Show nothing."""


def progress_bar(total: int, use_tqdm: bool | None) -> AbstractContextManager[ProgressBar]:
    """A tqdm bar over `total` prompts. None: one that shows after `DELAY` where stderr is a terminal; False:
    none."""
    if use_tqdm is False:
        return contextlib.nullcontext(_NoBar())
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    shown = {"delay": DELAY, "disable": None} if use_tqdm is None else {}
    bar: AbstractContextManager[ProgressBar] = tqdm(
        total=total, desc="Generating", unit="prompt", dynamic_ncols=True, **shown
    )
    return bar
