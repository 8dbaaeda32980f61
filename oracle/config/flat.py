"""vLLM's flat argument names (`tensor_parallel_size`, `kv_cache_dtype`, …) and the sections they belong to.

`LLM(...)`, the command line and vLLM's YAML configuration files share this one table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

from dodona.oracle.config.draft_method import current_method
from dodona.oracle.config.sections import SECTIONS
from dodona.oracle.errors import ConfigError, did_you_mean

_RENAMED = {("cache_config", "cache_dtype"): "kv_cache_dtype"}
_WHOLE = ("speculative_config", "compilation_config", "kv_transfer_config", "pooler_config")
"""Sections that vLLM's flat form takes as one JSON object."""

FLAT_ARGUMENTS: Mapping[str, tuple[str, str]] = {
    _RENAMED.get((section, field.name), field.name): (section, field.name)
    for section, cls in SECTIONS.items()
    if section not in _WHOLE
    for field in dataclasses.fields(cast(Any, cls))
}
"""Flat name → (section, field)."""

SECTION_ARGUMENTS: tuple[str, ...] = _WHOLE
"""Flat names that take a whole section: a mapping, JSON text, or (compilation_config) a mode."""

SWITCHES: Mapping[str, str] = {"enable_lora": "lora_config"}
"""Flat flags that configure a section which otherwise is not."""


def flat_names() -> tuple[str, ...]:
    """Every flat argument name."""
    return (*FLAT_ARGUMENTS, *SECTION_ARGUMENTS, *SWITCHES)


def nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Sort flat arguments into sections, as `EngineConfig.from_mapping` takes them.

    Raises ConfigError for a name that is none of `flat_names()`, and for an argument of a section that is not
    switched on.
    """
    sections: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in FLAT_ARGUMENTS:
            section, field = FLAT_ARGUMENTS[name]
            sections.setdefault(section, {})[field] = value
        elif name in SECTION_ARGUMENTS:
            sections[name] = _section(name, value)
        elif name in SWITCHES:
            if not isinstance(value, bool):
                raise ConfigError(f"{name}: expected true or false, got {value!r:.80}")
        else:
            hint = did_you_mean(name, flat_names())
            raise ConfigError(f"{name}: no such argument" + (f"; {hint}" if hint else ""))
    for switch, section in SWITCHES.items():
        if arguments.get(switch):
            sections.setdefault(section, {})
        elif section in sections:
            given = next(n for n, (owner, _) in FLAT_ARGUMENTS.items() if owner == section and n in arguments)
            raise ConfigError(f"{given}: has a meaning only with {switch}=True")
    return sections


def _section(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{name}: not valid JSON: {error}") from None
    if name == "compilation_config" and isinstance(value, (int, str)) and not isinstance(value, bool):
        return {"mode": value}
    if value is not None and not isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
        raise ConfigError(f"{name}: expected a JSON object, got {value!r:.80}")
    if name == "speculative_config" and isinstance(value, Mapping):
        method = value.get("method")
        if isinstance(method, str):
            return {**value, "method": current_method(method)}
    return value
