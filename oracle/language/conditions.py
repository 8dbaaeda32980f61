"""Conditions over facts: parsed once, immutable, evaluated in three-valued logic.

A condition is written as a mapping with exactly one key:

    all: [CONDITION, ...]      any: [CONDITION, ...]      not: CONDITION
    FACT: VALUE                FACT: {OPERATOR: VALUE}

`FACT: VALUE` means `FACT: {eq: VALUE}`. A comparison with null (an unset fact) is false, except `not_in`,
which is true, and `is_set`, which tells the two apart. A comparison with an unknown fact is unknown, and
`all`, `any` and `not` follow Kleene: unknown only where the known facts don't settle it. There are no
functions, variables, patterns or arithmetic, so every condition ends, and can be analysed.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dodona.oracle.language.facts import UNKNOWN, FactValue, Unknown
from dodona.oracle.language.yaml_source import DataPath

Operand = bool | int | str | tuple[int, ...] | tuple[str, ...]
Facts = Mapping[str, FactValue]
"""Facts by name. A name that is absent counts as unknown."""


class ConditionError(ValueError):
    """A condition that can't be read: `path` leads to the culprit inside the data, `hint` says how to mend
    it.
    """

    def __init__(self, message: str, hint: str, path: DataPath, *, key: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = path
        self.key = key


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison of a fact with a constant; `op` is a key of OPERATORS."""

    fact: str
    op: str
    value: Operand


@dataclass(frozen=True, slots=True)
class All:
    """Holds when every part holds. At least one part."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds when at least one part holds. At least one part."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Holds when its part does not."""

    part: Condition


Condition = Compare | All | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Operator:
    """How one operator is checked and evaluated. `holds(fact, constant)` sees set values only, of fitting
    types.
    """

    holds: Callable[[typing.Any, typing.Any], bool]
    types: frozenset[str]
    on_null: bool
    text: str
    negated_text: str


_SCALARS = frozenset({"bool", "int", "str"})
_ALL_TYPES = _SCALARS | {"list"}

OPERATORS: Final[Mapping[str, Operator]] = {
    "eq": Operator(lambda a, b: a == b, _SCALARS, False, "is", "is not"),
    "ne": Operator(lambda a, b: a != b, _SCALARS, False, "is not", "is"),
    "lt": Operator(lambda a, b: a < b, frozenset({"int"}), False, "<", ">="),
    "le": Operator(lambda a, b: a <= b, frozenset({"int"}), False, "<=", ">"),
    "gt": Operator(lambda a, b: a > b, frozenset({"int"}), False, ">", "<="),
    "ge": Operator(lambda a, b: a >= b, frozenset({"int"}), False, ">=", "<"),
    "in": Operator(lambda a, b: a in b, frozenset({"int", "str"}), False, "is one of", "is none of"),
    "not_in": Operator(lambda a, b: a not in b, frozenset({"int", "str"}), True, "is none of", "is one of"),
    "any_in": Operator(
        lambda a, b: not set(a).isdisjoint(b), frozenset({"list"}), False, "has one of", "has none of"
    ),
    "is_set": Operator(lambda a, b: b is True, _ALL_TYPES, False, "is set", "is unset"),
}


def evaluate(condition: Condition, facts: Facts) -> bool | None:
    """True, False, or None where unknown facts leave it open (Kleene)."""
    if isinstance(condition, Compare):
        return compare(condition, facts.get(condition.fact, UNKNOWN))
    if isinstance(condition, Not):
        inner = evaluate(condition.part, facts)
        return None if inner is None else not inner
    settles = isinstance(condition, AnyOf)
    unknown = False
    for part in condition.parts:
        value = evaluate(part, facts)
        if value is settles:
            return settles
        unknown = unknown or value is None
    return None if unknown else not settles


def compare(comparison: Compare, value: FactValue) -> bool | None:
    """One comparison, for a fact's value: True, False, or None for an unknown fact."""
    if isinstance(value, Unknown):
        return None
    operator = OPERATORS[comparison.op]
    if comparison.op == "is_set":
        return (value is not None) is comparison.value
    if value is None:
        return operator.on_null
    return operator.holds(value, comparison.value)


def facts_read(condition: Condition) -> tuple[str, ...]:
    """Names of the facts a condition compares, each once, in order of appearance."""
    return tuple(dict.fromkeys(c.fact for c in comparisons(condition)))


def comparisons(condition: Condition) -> tuple[Compare, ...]:
    """All comparisons of a condition, in order of appearance."""
    if isinstance(condition, Compare):
        return (condition,)
    if isinstance(condition, Not):
        return comparisons(condition.part)
    return tuple(c for part in condition.parts for c in comparisons(part))
