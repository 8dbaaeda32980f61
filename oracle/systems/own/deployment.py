"""A deployment of Dodona itself, and the changes to its configuration that take something away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import OPTIONAL_SECTIONS, SECTIONS
from dodona.oracle.decide.evaluate import with_assumptions
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.deployment import Change, Deployment, Value
from dodona.oracle.systems.own.facts import FACTS, derive_facts


@dataclass(frozen=True)
class OwnDeployment(Deployment):
    """An EngineConfig, a model (None: nothing is known of it) and a machine."""

    config: EngineConfig
    model: ModelInfo | None
    environment: Environment
    book: RuleBook

    def engine_config(self) -> EngineConfig:
        """The configuration."""
        return self.config

    def foreign_config(self) -> None:
        """None: `engine_config` is the whole configuration."""
        return None

    def changes(self) -> tuple[Change, ...]:
        """Every change that some fact of the book may depend on, in the configuration's order."""
        names = self.book.reads
        return tuple(c for c in own_changes(self.config) if any(self.affects(c, name) for name in names))

    def affects(self, change: Change, fact: str) -> bool:
        """Whether a fact may have another value after a change."""
        return change.touches(FACTS[fact])

    def known_facts(self, changes: Iterable[Change] = ()) -> Facts:
        """All facts, after changes that don't clash; unknown ones are unknown."""
        return derive_facts(apply_changes(self.config, changes), self.model, self.environment)

    def with_assumptions(self, known: Facts) -> Facts:
        """Known facts, with the book's assumptions in place of unknown ones."""
        return with_assumptions(self.book, known)[0]

    def assumptions(self, known: Facts) -> tuple[str, ...]:
        """The book's assumptions that stand in for unknown facts."""
        return with_assumptions(self.book, known)[1]


def own_changes(config: EngineConfig) -> tuple[Change, ...]:
    """Every field that isn't at its default, moved there; what is on by default, moved to off; and every
    optional section left out. The model itself stays.
    """
    found: list[Change] = []
    for section, cls in SECTIONS.items():
        values = getattr(config, section)
        if values is None:
            continue
        if section in OPTIONAL_SECTIONS:
            text = json.dumps(config.to_mapping()[section], sort_keys=True)
            found.append(Change(section, text, None))
        for field in dataclasses.fields(cast(Any, cls)):
            path = f"{section}.{field.name}"
            if path in _THE_MODEL:
                continue
            value, default = getattr(values, field.name), cast(Value, field.default)
            if value != default or type(value) is not type(default):
                found.append(Change(path, value, default))
            if value is True and default is not False:
                found.append(Change(path, True, False))
    return tuple(found)


_THE_MODEL: Final = ("model_config.model", "model_config.revision")
"""Fields that say which model it is: another one is no change of the configuration."""


def apply_changes(config: EngineConfig, changes: Iterable[Change]) -> EngineConfig:
    """The configuration after changes that don't clash.

    >>> config = EngineConfig.from_flat("dir", pipeline_parallel_size=2)
    >>> changed = apply_changes(config, [Change("parallel_config.pipeline_parallel_size", 2, 1)])
    >>> changed.parallel_config.pipeline_parallel_size
    1
    """
    sections: dict[str, Any] = {}
    for change in changes:
        section, _, field = change.path.partition(".")
        if not field:
            sections[section] = None
        else:
            current = sections.get(section, getattr(config, section))
            sections[section] = dataclasses.replace(current, **{field: change.after})
    return dataclasses.replace(config, **sections) if sections else config
