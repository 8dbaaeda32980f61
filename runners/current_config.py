"""The configuration that an engine runs with at present: one holder, whose value changes as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import SECTIONS
from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.own.facts import FACTS

CHANGEABLE = ("load_config.load_format",)
"""Fields that may change after the start. All others decided something then: a rule, a size, a buffer."""


class CurrentConfig:
    """Holds the current `EngineConfig` of one runner. Readers ask for `value` each time and keep no copy.

    The value is immutable and replaced in one assignment, so any thread may read it.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._value = config

    @property
    def value(self) -> EngineConfig:
        """The configuration, with all updates so far."""
        return self._value

    def update(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace fields, given as {section: {field: value}}: all of them, or none where one is refused.

        Raises ConfigError that names section and field: for one that does not exist, whose value is not as
        it must be, that a rule reads, or that is fixed when the engine starts.
        """
        changed = self._value.to_mapping()
        for section, fields in _checked_sections(overrides).items():
            for field, value in fields.items():
                _check_changeable(section, field)
                changed[section] = {**changed[section], field: value}
        self._value = EngineConfig.from_mapping(changed)


def _checked_sections(overrides: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"update_config: expected {{section: {{field: value}}}}, got {overrides!r:.80}")
    for section, fields in overrides.items():
        if section not in SECTIONS:
            hint = did_you_mean(str(section), SECTIONS) or f"known: {', '.join(SECTIONS)}"
            raise ConfigError(f"{section!s:.80}: no such section; {hint}")
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{section}: expected {{field: value}}, got {fields!r:.80}")
    return overrides


def _check_changeable(section: str, field: str) -> None:
    path = f"{section}.{field}"
    known = getattr(SECTIONS[section], "__dataclass_fields__", {})
    if field not in known:
        hint = did_you_mean(str(field), known) or f"known: {', '.join(known)}"
        raise ConfigError(f"{path}: no such field; {hint}")
    if path in CHANGEABLE:
        return  # rules that read it speak of files, which are looked at when they are loaded
    rules = [rule.id for rule in load_rulebook("dodona").rules if _reads(rule.reads, path)]
    if rules:
        raise ConfigError(
            f"{path}: rules read it ({', '.join(rules)}), so another value needs another verdict; "
            "make a new LLM"
        )
    raise ConfigError(
        f"{path}: is fixed when the engine starts; make a new LLM. What may change: {', '.join(CHANGEABLE)}"
    )


def _reads(facts: tuple[str, ...], path: str) -> bool:
    """Whether one of these facts depends on the field."""
    section = path.split(".")[0]
    of_model = path in ("model_config.model", "model_config.revision")
    return any(
        name == section or path in FACTS[name].reads or (of_model and FACTS[name].source == "model")
        for name in facts
    )
