"""Facts as the flat, total, typed fields that the rule engine can compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dodona.oracle.language.conditions import Compare, Facts, compare
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue, Unknown
from dodona.oracle.language.normal_forms import Literal
from dodona.oracle.language.yaml_source import MAX_INTEGER

Field = bool | int
"""The value of a field: true/false, or a whole number of at most 2^53 in absolute value."""

_NULL, _SET, _UNKNOWN = 0, 1, 2
STATE_SUFFIX = "__state"


class FieldTest(NamedTuple):
    """A comparison of a field with a constant."""

    field: str
    operator: str
    """The engine's operator, for instance "$lt"; "" for equality."""
    constant: Field

    @property
    def is_of_state(self) -> bool:
        """Whether it asks for the state of a fact: null, set or unknown."""
        return self.field.endswith(STATE_SUFFIX)


class Encoder:
    """Turns the literals of a book's clauses into tests of fields, and facts into those fields."""

    def __init__(self, facts: Mapping[str, FactSpec]) -> None:
        self.specs = facts
        self.codes: dict[str, dict[str, int]] = {}
        self.makers: dict[str, Callable[[Facts], Field]] = {}
        """Per field, how its value is made from facts."""

    def encode(self, literal: Literal, *, certain: bool) -> list[tuple[FieldTest, ...]]:
        """Alternatives, each a conjunction of tests, under which a literal surely holds (`certain`), or under
        which it isn't surely false.
        """
        comparison = literal.compare
        state = self._state(comparison.fact)
        alternatives: list[tuple[FieldTest, ...]] = []
        null_holds = bool(compare(comparison, None)) is not literal.negated
        if comparison.op == "is_set":
            set_holds = bool(comparison.value) is not literal.negated
            if set_holds:
                alternatives.append((FieldTest(state, "", _SET),))
        else:
            alternatives.append((FieldTest(state, "", _SET), self._test(comparison, literal.negated)))
        if null_holds:
            alternatives.append((FieldTest(state, "", _NULL),))
        if not certain:
            alternatives.append((FieldTest(state, "", _UNKNOWN),))
        return alternatives

    def _state(self, fact: str) -> str:
        field = f"{_field(fact)}{STATE_SUFFIX}"

        def make(facts: Facts) -> Field:
            value = facts.get(fact, UNKNOWN)
            return _UNKNOWN if isinstance(value, Unknown) else _NULL if value is None else _SET

        self.makers.setdefault(field, make)
        return field

    def _test(self, comparison: Compare, negated: bool) -> FieldTest:
        fact, op, constant = comparison.fact, comparison.op, comparison.value
        if op in ("in", "not_in", "any_in"):
            # the engine has no safe membership test: computed here, by the defining comparison
            field = f"{_field(fact)}__{op}_{_code(self.codes.setdefault(f'{fact} {op}', {}), repr(constant))}"
            self.makers.setdefault(
                field, lambda facts: _known(facts.get(fact)) and bool(compare(comparison, facts.get(fact)))
            )
            return FieldTest(field, "", not negated)
        kind = self.specs[fact].type
        field = _field(fact)
        if kind == "bool":
            assert isinstance(constant, bool)
            self.makers.setdefault(field, lambda facts: facts.get(fact) is True)
            return FieldTest(field, "", constant if (op == "eq") is not negated else not constant)
        if kind == "str":
            codes = self.codes.setdefault(fact, {})
            code = _code(codes, str(constant))
            self.makers.setdefault(field, lambda facts: codes.get(str(facts.get(fact)), 0))
            return FieldTest(field, "" if (op == "eq") is not negated else "$neq", code)
        assert isinstance(constant, int)
        self.makers.setdefault(field, lambda facts: _bounded(facts.get(fact)))
        return FieldTest(field, (_NEGATED if negated else _PLAIN)[op], constant)


_PLAIN = {"eq": "", "ne": "$neq", "lt": "$lt", "le": "$lte", "gt": "$gt", "ge": "$gte"}
_NEGATED = {"eq": "$neq", "ne": "", "lt": "$gte", "le": "$gt", "gt": "$lte", "ge": "$lt"}


def _field(fact: str) -> str:
    return fact.replace(".", "__")


def _code(codes: dict[str, int], text: str) -> int:
    return codes.setdefault(text, len(codes) + 1)


def _known(value: FactValue) -> bool:
    return value is not None and not isinstance(value, Unknown)


def _bounded(value: FactValue) -> int:
    """Beyond what the engine holds exactly, any number compares like the bound: constants stay below it."""
    if not isinstance(value, int):
        return 0
    return max(-MAX_INTEGER - 1, min(MAX_INTEGER + 1, value))
