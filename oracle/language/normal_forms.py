"""Normal forms of conditions; each is equal to its condition in three-valued logic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dodona.oracle.language.conditions import All, AnyOf, Compare, Condition, ConditionError, Not

MAX_CLAUSES: Final = 256
"""Largest disjunctive normal form of one condition."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A comparison or its negation."""

    compare: Compare
    negated: bool = False


Clause = tuple[Literal, ...]
"""A conjunction of literals."""


def negation_normal_form(condition: Condition, *, negate: bool = False) -> Condition:
    """The same condition (or its negation) with `not` around comparisons only. Equal in three-valued logic
    too.
    """
    if isinstance(condition, Compare):
        return Not(condition) if negate else condition
    if isinstance(condition, Not):
        return negation_normal_form(condition.part, negate=not negate)
    parts = tuple(negation_normal_form(part, negate=negate) for part in condition.parts)
    return All(parts) if isinstance(condition, All) is not negate else AnyOf(parts)


def disjunctive_normal_form(condition: Condition, *, negate: bool = False) -> tuple[Clause, ...]:
    """The same condition (or its negation) as a disjunction of clauses, without clauses that others imply.

    Contradictory clauses stay: with an unknown fact they are unknown, not false. Raises ConditionError beyond
    MAX_CLAUSES.
    """
    clauses = _dnf(negation_normal_form(condition, negate=negate))
    return tuple(tuple(sorted(clause, key=_literal_order)) for clause in clauses)


def _literal_order(literal: Literal) -> tuple[str, str, str, bool]:
    return literal.compare.fact, literal.compare.op, repr(literal.compare.value), literal.negated


def _dnf(condition: Condition) -> list[frozenset[Literal]]:
    if isinstance(condition, Compare):
        return [frozenset({Literal(condition)})]
    if isinstance(condition, Not):
        assert isinstance(condition.part, Compare)
        return [frozenset({Literal(condition.part, negated=True)})]
    if isinstance(condition, AnyOf):
        return _absorb([clause for part in condition.parts for clause in _dnf(part)])
    product: list[frozenset[Literal]] = [frozenset()]
    for part in condition.parts:
        alternatives = _dnf(part)
        if len(product) * len(alternatives) > 16 * MAX_CLAUSES:
            raise _too_many()
        product = _absorb([left | right for left in product for right in alternatives])
    return product


def _absorb(clauses: list[frozenset[Literal]]) -> list[frozenset[Literal]]:
    kept: list[frozenset[Literal]] = []
    for clause in sorted(dict.fromkeys(clauses), key=len):
        if not any(other <= clause for other in kept):
            kept.append(clause)
            if len(kept) > MAX_CLAUSES:
                raise _too_many()
    return kept


def _too_many() -> ConditionError:
    return ConditionError(
        f"has more than {MAX_CLAUSES} alternatives when multiplied out", "Split it into several rules.", ()
    )
