"""The blast radius of an edit: real model architectures whose verdict it changes.

An architecture's facts are those of its model type as transformers' configuration class has them by default.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dodona.oracle.analysis.architectures import model_type_of, typical_model
from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.regions import Kind, Regions
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.language.conditions import comparisons
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.models.known_models import known_architectures
from dodona.oracle.systems.registry import system_of


@dataclass(frozen=True)
class Radius:
    """Which of the known architectures an edit affects."""

    known: int
    """How many architectures there are."""
    plain: Mapping[str, tuple[Kind, Kind]]
    """Those whose outcome differs in a plain configuration: before and after."""
    featured: tuple[str, ...]
    """Others, whose outcome differs with some configuration or on some machine."""


def blast_radius(before: Regions, after: Regions, outcome_differs: int) -> Radius:
    """The architectures whose outcome two books see differently; the regions are over one space."""
    space = before.space
    names = architectures(before.book, after.book)
    plain: dict[str, tuple[Kind, Kind]] = {}
    featured: list[str] = []
    read = set(before.book.reads) | set(after.book.reads)
    for name in names:
        of_model = {k: v for k, v in model_facts(name, before.book.system).items() if k in read}
        facts = {**space.baseline, **of_model}
        kinds = _kind(before.book, facts), _kind(after.book, facts)
        if kinds[0] != kinds[1]:
            plain[name] = kinds
        elif space.diagrams.all_of([outcome_differs, space.known, space.given(of_model)]) != FALSE:
            featured.append(name)
    return Radius(len(names), plain, tuple(featured))


def _kind(book: RuleBook, facts: Mapping[str, FactValue]) -> Kind:
    return evaluate(book, facts).outcome.kind


def architectures(*books: RuleBook) -> list[str]:
    """Known architectures of models with a head, and those that the books name."""
    named = {
        str(entry)
        for book in books
        for rule in book.rules
        for comparison in comparisons(rule.when)
        if comparison.fact in ("model_config.architectures", "model_config.architecture")
        and comparison.op != "is_set"
        for entry in (comparison.value if isinstance(comparison.value, tuple) else (comparison.value,))
    }
    return sorted(named | {name for name in known_architectures() if _HEAD.search(name)})


_HEAD = re.compile(r"(For[A-Z]\w+|LMHeadModel)$")


@functools.lru_cache(maxsize=4096)
def model_facts(architecture: str, system: str) -> Mapping[str, FactValue]:
    """The facts of config.json for an architecture, as a system sees them.

    Where no model type has the architecture's name, only the architecture itself is known of it.
    """
    described = system_of(system)
    if model_type_of(architecture) is None:
        named: dict[str, FactValue] = {
            "model_config.architectures": (architecture,),
            "model_config.architecture": architecture,
        }
        return {name: value for name, value in named.items() if name in described.facts}
    return {
        name: value
        for name, value in described.plain_facts(typical_model(architecture)).items()
        if described.facts[name].source == "model" and value is not UNKNOWN
    }
