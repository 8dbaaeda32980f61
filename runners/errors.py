"""Errors of the runtime."""

from __future__ import annotations

from dodona.oracle.errors import DodonaError


class InvalidRequestError(DodonaError, ValueError):
    """A request can't be served: a parameter is out of range, the prompt is empty or too long, …"""


class EngineDeadError(DodonaError, RuntimeError):
    """The engine has ended: by `shutdown`, or by an error of the runner, which is the `__cause__`."""


class EngineSetupError(DodonaError, ValueError):
    """The engine can't start with this configuration, for instance with too little memory for KV blocks."""


class EngineAsleepError(DodonaError, RuntimeError):
    """Something was asked that needs memory which `sleep` gave back; `wake_up` takes it again."""


class EngineThreadError(DodonaError, RuntimeError):
    """The engine was called from a function that its own thread runs, and would wait for itself."""
