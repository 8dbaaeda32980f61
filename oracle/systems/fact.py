"""A fact of a system: what the rule language knows of it, and how the system derives its value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from dodona.oracle.language.facts import FactSpec, FactValue

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Fact(FactSpec, Generic[Inputs]):
    """A fact, and its value as a function of the system's inputs: a configuration, a model and a machine."""

    derive: Callable[[Inputs], FactValue] = field(kw_only=True)


SomeFact = TypeVar("SomeFact", bound=Fact[Any])


def registry(facts: Iterable[SomeFact]) -> Mapping[str, SomeFact]:
    """Facts by their names. Raises AssertionError where two have the same name."""
    found: dict[str, SomeFact] = {}
    for fact in facts:
        if found.setdefault(fact.name, fact) is not fact:
            raise AssertionError(f"two facts have the name {fact.name}")
    return MappingProxyType(found)
