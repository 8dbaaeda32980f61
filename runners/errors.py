"""Errors of the runtime."""

from __future__ import annotations

from dodona.oracle.errors import DodonaError


class InvalidRequestError(DodonaError, ValueError):
    """One request asks for what can't be served: a parameter out of range, an empty or too long prompt, …"""


class EngineDeadError(DodonaError, RuntimeError):
    """The engine has ended, by `shutdown` or by an error of the runner, which is then its `__cause__`."""


class EngineSetupError(DodonaError, ValueError):
    """The engine can't start with this configuration, for instance with too little memory for KV blocks."""
