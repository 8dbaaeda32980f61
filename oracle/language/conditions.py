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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from dodona.oracle.errors import did_you_mean
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue, Unknown
from dodona.oracle.language.yaml_source import MAX_INTEGER, TYPE_NAMES, DataPath

MAX_CLAUSES: Final = 256
"""Largest disjunctive normal form of one condition."""
MAX_CONDITION_DEPTH: Final = 12
MAX_TEXT: Final = 200
"""Longest text that a condition compares with, in characters."""

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
class Literal:
    """A comparison or its negation."""

    compare: Compare
    negated: bool = False


Clause = tuple[Literal, ...]
"""A conjunction of literals."""


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

_OPERATOR_HINTS = {
    "==": "eq", "=": "eq", "equals": "eq", "is": "eq", "!=": "ne", "neq": "ne", "not_eq": "ne",
    "<": "lt", "<=": "le", "lte": "le", ">": "gt", ">=": "ge", "gte": "ge",
    "one_of": "in", "nin": "not_in", "not in": "not_in", "contains": "any_in", "includes": "any_in",
    "exists": "is_set", "isset": "is_set", "null": "is_set",
}  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the closest known name, or an empty string where none is close."""
    candidates = list(known)
    found = did_you_mean(name, candidates)
    if not found:
        # the section is often forgotten or wrong: look for the same last part
        tail = name.rsplit(".", 1)[-1].lower()
        found = did_you_mean(tail, {c.rsplit(".", 1)[-1] for c in candidates})
        if found:
            last = found.split("'")[1]
            found = f"did you mean {next(c for c in candidates if c.rsplit('.', 1)[-1] == last)!r}?"
    return found[:1].upper() + found[1:]


# --- parsing
# ---------------------------------------------------------------------------------------------------------


def parse_condition(
    data: object, facts: Mapping[str, FactSpec], *, path: DataPath = (), depth: int = 0
) -> Condition:
    """Parse plain data (see the module) against a fact registry. Raises ConditionError naming the culprit's
    path.
    """
    if depth > MAX_CONDITION_DEPTH:
        raise ConditionError(
            f"nests deeper than {MAX_CONDITION_DEPTH} levels",
            "Flatten it, or split it into several rules.",
            path,
        )
    if not isinstance(data, Mapping):
        raise ConditionError(
            f"a condition is a mapping, not {_kind(data)}",
            "Write `FACT: VALUE`, `all: [...]`, `any: [...]` or `not: ...`.",
            path,
        )
    if len(data) != 1:
        raise ConditionError(
            f"a condition has exactly one key, not {len(data)}"
            + (f" ({', '.join(map(repr, data))})" if data else ""),
            "Join several with `all: [...]` or `any: [...]`.",
            path,
        )
    key, value = next(iter(data.items()))
    here = (*path, str(key))
    if key in ("all", "any"):
        if not isinstance(value, (list, tuple)) or not value:
            raise ConditionError(
                f"`{key}` takes a list of at least one condition, not {_kind(value)}",
                f"Write `{key}: [CONDITION, ...]`.",
                here,
            )
        parts = tuple(
            parse_condition(part, facts, path=(*here, i), depth=depth + 1) for i, part in enumerate(value)
        )
        return All(parts) if key == "all" else AnyOf(parts)
    if key == "not":
        return Not(parse_condition(value, facts, path=here, depth=depth + 1))
    if not isinstance(key, str) or key not in facts:
        hint = (
            nearest(str(key), [*facts, "all", "any", "not"])
            or "`dodona rules facts` and docs/rules.md list the facts."
        )
        raise ConditionError(f"unknown fact '{key}'", hint, here, key=True)
    return _parse_compare(facts[key], value, here)


def _parse_compare(spec: FactSpec, value: object, path: DataPath) -> Compare:
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple)):
            op = "any_in" if spec.type == "list" else "in"
            raise ConditionError(
                f"'{spec.name}' is compared with a list without an operator",
                f"Write `{spec.name}: {{{op}: [...]}}`.",
                path,
            )
        if spec.type == "list":
            raise ConditionError(
                f"'{spec.name}' is a list and can't equal one value",
                f"Write `{spec.name}: {{any_in: [...]}}`.",
                path,
            )
        return Compare(spec.name, "eq", check_scalar(spec, value, path))
    if len(value) != 1:
        raise ConditionError(
            f"'{spec.name}' takes exactly one operator, not {len(value)}",
            "Join several comparisons with `all: [...]`.",
            path,
        )
    op, operand = next(iter(value.items()))
    here = (*path, str(op))
    if op not in OPERATORS:
        known = _OPERATOR_HINTS.get(str(op).lower())
        hint = f"Did you mean '{known}'?" if known else nearest(str(op), OPERATORS)
        raise ConditionError(
            f"unknown operator '{op}'", hint or f"Operators are {', '.join(OPERATORS)}.", here, key=True
        )
    operator = OPERATORS[op]
    if spec.type not in operator.types:
        fitting = ", ".join(name for name, o in OPERATORS.items() if spec.type in o.types)
        raise ConditionError(
            f"operator '{op}' doesn't fit '{spec.name}', which is {_TYPE_WORDS[spec.type]}",
            f"Use one of: {fitting}.",
            here,
            key=True,
        )
    if op == "is_set":
        if not isinstance(operand, bool):
            raise ConditionError(
                f"'is_set' takes true or false, not {_kind(operand)}", "Write `{is_set: true}`.", here
            )
        if not spec.nullable:
            raise ConditionError(
                f"'{spec.name}' is always set",
                "Compare its value instead; `is_set` is for facts that may be null.",
                here,
            )
        return Compare(spec.name, "is_set", operand)
    if op in ("in", "not_in", "any_in"):
        if not isinstance(operand, (list, tuple)) or not operand:
            raise ConditionError(
                f"'{op}' takes a list of at least one value, not {_kind(operand)}",
                f"Write `{{{op}: [...]}}`.",
                here,
            )
        items = [check_scalar(spec, item, (*here, i)) for i, item in enumerate(operand)]
        for i, item in enumerate(items):
            if item in items[:i]:
                raise ConditionError(f"{item!r} is listed twice", "Remove one of them.", (*here, i))
        return Compare(spec.name, op, typing.cast(Operand, tuple(items)))
    return Compare(spec.name, op, check_scalar(spec, operand, here))


_TYPE_WORDS = {"bool": "true/false", "int": "a whole number", "str": "text", "list": "a list of texts"}
_PYTHON_TYPES: dict[str, type] = {"bool": bool, "int": int, "str": str, "list": str}


def check_scalar(spec: FactSpec, value: object, path: DataPath) -> bool | int | str:
    """A constant for a fact (for a list fact: one entry), checked against type, domain and range. Raises
    ConditionError.
    """
    if value is None:
        raise ConditionError(
            f"'{spec.name}' is compared with null, which is never true",
            f"Write `{spec.name}: {{is_set: false}}` for an unset fact.",
            path,
        )
    expected = _PYTHON_TYPES[spec.type]
    if type(value) is not expected:
        wanted = "text" if spec.type == "list" else _TYPE_WORDS[spec.type]
        hint = f"Write '{value}' in quotes." if expected is str else f"'{spec.name}' holds {wanted}."
        if expected is int and isinstance(value, str) and value.lstrip("-").isdigit():
            hint = f"Write {value} without quotes."
        raise ConditionError(f"'{spec.name}' is compared with {_kind(value)}, but is {wanted}", hint, path)
    if isinstance(value, str) and (len(value) > MAX_TEXT or not value.isprintable()):
        raise ConditionError(
            f"the text for '{spec.name}' is longer than {MAX_TEXT} characters or holds control characters",
            "Compare with the plain name.",
            path,
        )
    if spec.domain is not None and value not in spec.domain:
        listed = ", ".join(str(v) for v in spec.domain[:12])
        raise ConditionError(
            f"{value!r} is outside the domain of '{spec.name}'",
            f"It is one of: {listed}."
            if len(spec.domain) <= 12
            else nearest(str(value), spec.domain) or f"Known values begin with: {listed}.",
            path,
        )
    if type(value) is int:
        low = -MAX_INTEGER if spec.minimum is None else spec.minimum
        high = MAX_INTEGER if spec.maximum is None else spec.maximum
        if not low <= value <= high:
            raise ConditionError(
                f"{value} is outside the range of '{spec.name}'", f"It goes from {low} to {high}.", path
            )
    return typing.cast("bool | int | str", value)


def _kind(value: object) -> str:
    if isinstance(value, (list, tuple)) and not value:
        return "an empty list"
    name = TYPE_NAMES.get(type(value), type(value).__name__)
    return f"{name} ({value!r})" if isinstance(value, (str, int)) else name


# --- meaning
# ---------------------------------------------------------------------------------------------------------


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


# --- normal forms
# ----------------------------------------------------------------------------------------------------


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


# --- writing
# ---------------------------------------------------------------------------------------------------------


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


def show_value(value: object) -> str:
    """A fact's value as people write it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
