"""A deployment as one rule book sees it: its facts, and the changes to its configuration that take something
away.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import OPTIONAL_SECTIONS, SECTIONS
from dodona.oracle.decide.evaluate import with_assumptions
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec, show_value
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.hub import resolve_model
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.books import bundled_rulebooks, load_rulebook
from dodona.oracle.systems.own.facts import FACTS, derive_facts
from dodona.oracle.systems.registry import VLLM

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Change:
    """One field of the configuration moved to its default or to off, or one optional section left out."""

    path: str
    """`section.field`, or the section's name."""
    before: Value
    """The value that is configured; of a section or a list, its JSON text."""
    after: Value
    """The new value; None: unset."""

    def __str__(self) -> str:
        if self.is_section:
            return f"{self.path} → unset"
        return f"{self.path} {show_value(self.before)} → {show_value(self.after)}"

    @property
    def is_section(self) -> bool:
        """Whether a whole section goes."""
        return "." not in self.path

    def clashes(self, other: Change) -> bool:
        """Whether the two can't be made together: both of one field, or of a section and a field of it."""
        return (
            self.path == other.path
            or self.path.startswith(f"{other.path}.")
            or other.path.startswith(f"{self.path}.")
        )

    def touches(self, spec: FactSpec, also: Collection[str] = ()) -> bool:
        """Whether a fact may be another after the change. also: what else it is derived from."""
        return any(
            path == self.path or path.startswith(f"{self.path}.") for path in (spec.name, *spec.reads, *also)
        )


class Deployment(Protocol):
    """What counterfactuals and explanations need to know of a system's configuration."""

    @property
    def book(self) -> RuleBook:
        """The rule book that decides."""
        ...

    @property
    def environment(self) -> Environment:
        """The machine, and the runner that is forced."""
        ...

    def changes(self) -> tuple[Change, ...]:
        """Every change that some fact of the book may depend on, in the configuration's order."""
        ...

    def affects(self, change: Change, fact: str) -> bool:
        """Whether a fact may have another value after a change."""
        ...

    def known_facts(self, changes: Iterable[Change] = ()) -> Facts:
        """All facts, after changes that don't clash; unknown ones are unknown."""
        ...

    def facts(self, changes: Iterable[Change] = ()) -> Facts:
        """The same with the book's assumptions in place of what is unknown: what the rules see."""
        ...


# --- this runtime's own -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnDeployment:
    """An EngineConfig, a model (None: nothing is known of it) and a machine."""

    config: EngineConfig
    model: ModelInfo | None
    environment: Environment
    book: RuleBook

    def changes(self) -> tuple[Change, ...]:
        """Every change that some fact of the book may depend on, in the configuration's order."""
        names = self.book.reads
        return tuple(c for c in own_changes(self.config) if any(self.affects(c, name) for name in names))

    def affects(self, change: Change, fact: str) -> bool:
        """Whether a fact may have another value after a change."""
        return change.touches(FACTS[fact])

    def known_facts(self, changes: Iterable[Change] = ()) -> Facts:
        """All facts, after changes that don't clash; unknown ones are unknown."""
        config = apply_changes(self.config, changes)
        return derive_facts(config, self.model, self.environment)

    def facts(self, changes: Iterable[Change] = ()) -> Facts:
        """The same with the book's assumptions in place of what is unknown."""
        return with_assumptions(self.book, self.known_facts(changes))[0]


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
        for field in dataclasses.fields(typing.cast(Any, cls)):
            path = f"{section}.{field.name}"
            if path in _THE_MODEL:
                continue
            value, default = getattr(values, field.name), typing.cast(Value, field.default)
            if value != default or type(value) is not type(default):
                found.append(Change(path, value, default))
            if value is True and default is not False:
                found.append(Change(path, True, False))
    return tuple(found)


_THE_MODEL = ("model_config.model", "model_config.revision")
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


# --- from a verdict -----------------------------------------------------------------------------------------


def deployment_of(verdict: Verdict, book: RuleBook | None = None) -> Deployment:
    """The deployment that a verdict is about; reads the model's config.json again.

    book: the book that decided, where it isn't one that comes with Dodona. Raises ConfigError where that is
    another one, where the verdict doesn't say for which machine it was reached, or where there is no model.
    """
    book = book_of(verdict) if book is None else book
    if book.content_hash != verdict.rulebook.content_hash:
        raise ConfigError(
            f"the verdict was reached by another content of rule book {verdict.rulebook.name} "
            f"({verdict.rulebook.content_hash[:12]}, not {book.content_hash[:12]}); give that book, or "
            "select again"
        )
    if verdict.environment is None:
        raise ConfigError("the verdict doesn't say for which machine it was reached; select again")
    if book.system == VLLM:
        from dodona.oracle.systems.vllm.deployment import VllmDeployment

        sections = json.loads(verdict.vllm_config or "{}") or verdict.config.to_mapping()
        return VllmDeployment.of(sections, verdict.environment, book)
    return OwnDeployment(verdict.config, model_of(verdict.config), verdict.environment, book)


def model_of(config: EngineConfig) -> ModelInfo:
    """What a configured model's config.json says. Raises ConfigError."""
    name = config.model_config.model
    return ModelInfo.load(resolve_model(name, revision=config.model_config.revision))


def book_of(verdict: Verdict) -> RuleBook:
    """The bundled book that decided. Raises ConfigError where it is none of them."""
    name = verdict.rulebook.name
    if name not in _bundled():
        raise ConfigError(f"rule book {name} doesn't come with Dodona: give it (rulebook=...)")
    return load_rulebook(name)


@functools.cache
def _bundled() -> frozenset[str]:
    return frozenset(bundled_rulebooks())
