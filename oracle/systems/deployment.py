"""A configuration, a model and a machine, with the facts of one rule book, and the changes that remove
something from the configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec, show_value
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment

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


class Deployment(ABC):
    """A configuration, a model and a machine, and the rule book that decides about them."""

    environment: Environment
    """The machine, and the runner that is forced."""
    book: RuleBook
    unread: tuple[str, ...] = ()
    """Arguments that were given, could change the verdict, and are not understood."""

    @abstractmethod
    def engine_config(self) -> EngineConfig:
        """The configuration; of another system, the part of it that an EngineConfig can hold."""

    @abstractmethod
    def foreign_config(self) -> Mapping[str, Any] | None:
        """The whole configuration as it was given, nested; None where `engine_config` is the whole."""

    @abstractmethod
    def changes(self) -> tuple[Change, ...]:
        """Every change that some fact of the book may depend on, in the configuration's order."""

    @abstractmethod
    def affects(self, change: Change, fact: str) -> bool:
        """Whether a fact may have another value after a change."""

    @abstractmethod
    def known_facts(self, changes: Iterable[Change] = ()) -> Facts:
        """All facts, after changes that don't clash; unknown ones are unknown."""

    @abstractmethod
    def with_assumptions(self, known: Facts) -> Facts:
        """Known facts, with what the book and its system assume in place of unknown ones."""

    @abstractmethod
    def assumptions(self, known: Facts) -> tuple[str, ...]:
        """What a verdict says of these assumptions, as text."""

    def facts(self, changes: Iterable[Change] = ()) -> Facts:
        """The facts that the rules see, after changes that don't clash."""
        return self.with_assumptions(self.known_facts(changes))
