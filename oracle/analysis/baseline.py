"""A plain configuration, from which the distance of witnesses is counted: Qwen3, dense and unquantized,
that generates text on one NVIDIA GPU, with nothing special asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

from dodona.oracle.analysis.architectures import PLAIN_ARCHITECTURE, typical_model
from dodona.oracle.analysis.space import generic_baseline, sections_of
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.registry import system_of


def baseline_of(book: RuleBook) -> Mapping[str, FactValue]:
    """Plain values of all facts that a book may read."""
    return plain_facts(book.system)


@functools.lru_cache(maxsize=64)
def plain_facts(system: str) -> Mapping[str, FactValue]:
    """Plain values of all facts of a system."""
    described = system_of(system)
    known = described.plain_facts(typical_model(PLAIN_ARCHITECTURE))
    found = generic_baseline(described.facts)
    found |= {name: value for name, value in known.items() if value is not UNKNOWN}
    for name in described.facts:
        if any(found[section] is None for section in sections_of(name, described.facts)):
            found[name] = None
    return MappingProxyType(found)
