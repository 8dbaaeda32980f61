"""Decides which model runner serves a configuration, and says why.

`select_runner` is where to begin.

Nothing here imports torch or transformers; names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dodona.oracle.config import CompilationMode as CompilationMode
    from dodona.oracle.config import EngineConfig as EngineConfig
    from dodona.oracle.environment import Environment as Environment
    from dodona.oracle.errors import ConfigError as ConfigError
    from dodona.oracle.errors import DodonaError as DodonaError
    from dodona.oracle.errors import RuleFileError as RuleFileError
    from dodona.oracle.errors import UnsupportedConfiguration as UnsupportedConfiguration
    from dodona.oracle.facts import FACTS as FACTS
    from dodona.oracle.facts import UNKNOWN as UNKNOWN
    from dodona.oracle.facts import derive_facts as derive_facts
    from dodona.oracle.model_info import ModelInfo as ModelInfo
    from dodona.oracle.select import select_runner as select_runner
    from dodona.oracle.verdict import Reason as Reason
    from dodona.oracle.verdict import Verdict as Verdict

_HOMES = {
    "CompilationMode": "config",
    "ConfigError": "errors",
    "DodonaError": "errors",
    "EngineConfig": "config",
    "Environment": "environment",
    "FACTS": "facts",
    "ModelInfo": "model_info",
    "Reason": "verdict",
    "RuleFileError": "errors",
    "UNKNOWN": "facts",
    "UnsupportedConfiguration": "errors",
    "Verdict": "verdict",
    "derive_facts": "facts",
    "select_runner": "select",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
