"""Errors of the runtime."""

from __future__ import annotations

from collections.abc import Sequence

from dodona.oracle.errors import DodonaError
from dodona.oracle.printable import printable


class InvalidRequestError(DodonaError, ValueError):
    """A request can't be served: a parameter is out of range, the prompt is empty or too long, …"""


class WrongTaskError(InvalidRequestError):
    """A call that the model is not served for: `generate` of a pooling model, `embed` of one that generates
    or classifies."""


class EngineDeadError(DodonaError, RuntimeError):
    """The engine has ended: by `shutdown`, or by an error of the runner, which is the `__cause__`."""


class EngineSetupError(DodonaError, ValueError):
    """The engine can't start with this configuration, for instance with too little memory for KV blocks."""


class WorkerError(DodonaError, RuntimeError):
    """A worker died, gave no answer in time, or failed; `rank` is its rank.

    `str()` says what happened, then the last lines of its traceback and output, which `log_tail` holds. The
    error that it failed with is the `__cause__`.
    """

    def __init__(self, rank: int, happened: str, log_tail: Sequence[str] = ()) -> None:
        super().__init__(rank, happened, tuple(log_tail))
        self.rank = rank
        self.happened = printable(happened)
        self.log_tail = tuple(map(printable, log_tail))

    def __str__(self) -> str:
        lines = [f"  | {line}" for line in self.log_tail]
        return "\n".join([f"{self.happened}; its last lines:", *lines] if lines else [self.happened])


class EngineAsleepError(DodonaError, RuntimeError):
    """Something was asked that needs memory which `sleep` gave back; `wake_up` takes it again."""


class EngineThreadError(DodonaError, RuntimeError):
    """The engine was called from a function that its own thread runs, and would wait for itself."""
