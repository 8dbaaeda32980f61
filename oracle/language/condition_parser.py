"""Reads conditions and values of facts from plain data, and checks them against a registry of facts."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Final

from dodona.oracle.errors import nearest
from dodona.oracle.language.conditions import (
    OPERATORS,
    All,
    AnyOf,
    Compare,
    Condition,
    ConditionError,
    Not,
    Operand,
)
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.yaml_source import MAX_INTEGER, TYPE_NAMES, DataPath

MAX_CONDITION_DEPTH: Final = 12
MAX_TEXT: Final = 200

MAX_LIST: Final = 2_000
"""Most values of a list that a fact is compared with."""
"""Longest text that a condition compares with, in characters."""

_OPERATOR_HINTS = {
    "==": "eq", "=": "eq", "equals": "eq", "is": "eq", "!=": "ne", "neq": "ne", "not_eq": "ne",
    "<": "lt", "<=": "le", "lte": "le", ">": "gt", ">=": "ge", "gte": "ge",
    "one_of": "in", "nin": "not_in", "not in": "not_in", "contains": "any_in", "includes": "any_in",
    "exists": "is_set", "isset": "is_set", "null": "is_set",
}  # fmt: skip


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
        if len(operand) > MAX_LIST:
            raise ConditionError(
                f"'{op}' lists {len(operand)} values, more than {MAX_LIST}",
                "Compare with fewer values, or with a range.",
                here,
            )
        items = [check_scalar(spec, item, (*here, i)) for i, item in enumerate(operand)]
        seen: set[bool | int | str] = set()
        for i, item in enumerate(items):
            if item in seen:
                raise ConditionError(f"{item!r} is listed twice", "Remove one of them.", (*here, i))
            seen.add(item)
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


def check_value(spec: FactSpec, value: object, path: DataPath = ()) -> FactValue:
    """A fact's value given as data (lists for list facts), checked. Raises ConditionError."""
    if value is None:
        if not spec.nullable:
            raise ConditionError(f"'{spec.name}' is never null", "Give a value.", path)
        return None
    if spec.type == "list":
        if not isinstance(value, (list, tuple)):
            raise ConditionError(f"'{spec.name}' is a list", "Write `[...]`.", path)
        return tuple(str(check_scalar(spec, item, (*path, i))) for i, item in enumerate(value))
    return check_scalar(spec, value, path)


def _kind(value: object) -> str:
    if isinstance(value, (list, tuple)) and not value:
        return "an empty list"
    name = TYPE_NAMES.get(type(value), type(value).__name__)
    return f"{name} ({value!r})" if isinstance(value, (str, int)) else name
