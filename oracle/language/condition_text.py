"""Conditions as plain data for rule files, and as a line of text for people."""

from __future__ import annotations

from collections.abc import Mapping

from dodona.oracle.language.conditions import OPERATORS, All, AnyOf, Compare, Condition, Not
from dodona.oracle.language.facts import FactSpec, show_value
from dodona.oracle.language.normal_forms import negation_normal_form


def to_data(condition: Condition) -> dict[str, object]:
    """The canonical plain data of a condition; `parse_condition` reads it back equal."""
    if isinstance(condition, All):
        return {"all": [to_data(part) for part in condition.parts]}
    if isinstance(condition, AnyOf):
        return {"any": [to_data(part) for part in condition.parts]}
    if isinstance(condition, Not):
        return {"not": to_data(condition.part)}
    value: object = list(condition.value) if isinstance(condition.value, tuple) else condition.value
    return {condition.fact: value if condition.op == "eq" else {condition.op: value}}


def describe(condition: Condition, facts: Mapping[str, FactSpec], *, negate: bool = False) -> str:
    """One line of text for people: the condition, or what its negation asks for."""
    return _describe(negation_normal_form(condition, negate=negate), facts, top=True)


def _describe(condition: Condition, facts: Mapping[str, FactSpec], *, top: bool) -> str:
    if isinstance(condition, (All, AnyOf)):
        word = " and " if isinstance(condition, All) else " or "
        parts = [_describe(part, facts, top=len(condition.parts) == 1) for part in condition.parts]
        text = word.join(dict.fromkeys(parts))
        return text if top or len(parts) == 1 else f"({text})"
    negated = isinstance(condition, Not)
    comparison = condition.part if isinstance(condition, Not) else condition
    assert isinstance(comparison, Compare)
    operator = OPERATORS[comparison.op]
    if comparison.op == "is_set":
        return f"{comparison.fact} {'is set' if comparison.value is not negated else 'is unset'}"
    words = operator.negated_text if negated else operator.text
    value = comparison.value
    if isinstance(value, bool) and words == "is not":
        words, value = "is", not value
    shown = ", ".join(map(show_value, value)) if isinstance(value, tuple) else show_value(value)
    spec = facts.get(comparison.fact)
    null_too = spec is not None and spec.nullable and operator.on_null is not negated
    return f"{comparison.fact} {words} {shown}" + (" (or is unset)" if null_too else "")
