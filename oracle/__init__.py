"""Decides which model runner serves a configuration, and says why.

`select_runner` is where to begin.

Nothing here imports torch or transformers; names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig as EngineConfig
    from dodona.oracle.config.sections import CompilationMode as CompilationMode
    from dodona.oracle.decide.verdict import Reason as Reason
    from dodona.oracle.decide.verdict import Verdict as Verdict
    from dodona.oracle.errors import ConfigError as ConfigError
    from dodona.oracle.errors import DodonaError as DodonaError
    from dodona.oracle.errors import RuleFileError as RuleFileError
    from dodona.oracle.errors import UnsupportedConfiguration as UnsupportedConfiguration
    from dodona.oracle.language.facts import UNKNOWN as UNKNOWN
    from dodona.oracle.machine.environment import Environment as Environment
    from dodona.oracle.models.model_info import ModelInfo as ModelInfo
    from dodona.oracle.select import select_runner as select_runner
    from dodona.oracle.systems.own.facts import FACTS as FACTS
    from dodona.oracle.systems.own.facts import derive_facts as derive_facts

_HOMES = {
    "CompilationMode": "config.sections",
    "ConfigError": "errors",
    "DodonaError": "errors",
    "EngineConfig": "config.engine_config",
    "Environment": "machine.environment",
    "FACTS": "systems.own.facts",
    "ModelInfo": "models.model_info",
    "Reason": "decide.verdict",
    "RuleFileError": "errors",
    "UNKNOWN": "language.facts",
    "UnsupportedConfiguration": "errors",
    "Verdict": "decide.verdict",
    "derive_facts": "systems.own.facts",
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
