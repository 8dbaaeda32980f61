"""A rule book as rulesets of the rule engine: plain data, which an engine registers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.decide.durable.encoding import STATE_SUFFIX, Encoder, Field, FieldTest
from dodona.oracle.decide.durable.engine import RESERVED, SENTINEL, EngineUnavailable, Ruleset
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec
from dodona.oracle.language.normal_forms import Clause, disjunctive_normal_form
from dodona.oracle.language.rulebook import RuleBook

MAX_CLAUSES_PER_RULESET: Final = 47
"""One less than the engine's safe number of siblings: the sentinel is a sibling too."""
MAX_CLAUSES_PER_RULE: Final = 4096
MAX_FIELDS: Final = 200


@dataclass(frozen=True, slots=True)
class _Clause:
    """A conjunction of tests: one durable rule."""

    name: str
    rule: str
    """The id of the book's rule."""
    tests: tuple[FieldTest, ...]


class CompiledBook:
    """A book's rulesets and the encoder of their facts.

    Raises EngineUnavailable for a book that the engine can't hold.
    """

    def __init__(self, book: RuleBook, facts: Mapping[str, FactSpec] | None = None) -> None:
        self.encoder = Encoder(book.facts if facts is None else facts)
        prefix = f"book_{book.content_hash}"
        self.certain = self._rulesets(book, f"{prefix}_sure", certain=True)
        """Rulesets whose rules fire surely."""
        self.possible = self._rulesets(book, f"{prefix}_open", certain=False)
        """Rulesets whose rules fire surely, or because unknown facts leave it open."""
        _check_names(self.encoder.makers)

    @property
    def rulesets(self) -> tuple[Ruleset, ...]:
        """All rulesets."""
        return (*self.certain, *self.possible)

    def fields(self, ruleset: Ruleset, facts: Facts) -> dict[str, Field]:
        """The fields that one ruleset compares, from facts."""
        makers = self.encoder.makers
        return {name: makers[name](facts) for name in ruleset.fields}

    def _rulesets(self, book: RuleBook, prefix: str, *, certain: bool) -> tuple[Ruleset, ...]:
        clauses: list[_Clause] = []
        for number, rule in enumerate(book.rules):
            if certain or rule.fires_if_unknown:
                for tests in self._expand(disjunctive_normal_form(rule.fires_when), certain=certain):
                    clauses.append(_Clause(f"r{number}c{len(clauses)}", rule.id, tests))
        groups: list[list[_Clause]] = []
        for clause in clauses:
            if not groups or not _fits(groups[-1], clause):
                groups.append([])
            groups[-1].append(clause)
        return tuple(_ruleset(f"{prefix}_{i}", group) for i, group in enumerate(groups))

    def _expand(self, clauses: Sequence[Clause], *, certain: bool) -> list[tuple[FieldTest, ...]]:
        expanded: dict[frozenset[FieldTest], None] = {}
        for clause in clauses:
            options = [self.encoder.encode(literal, certain=certain) for literal in clause]
            for choice in itertools.product(*options):
                tests = frozenset(test for part in choice for test in part)
                if not _contradicts(tests):
                    expanded[tests] = None
                if len(expanded) > MAX_CLAUSES_PER_RULE:
                    raise EngineUnavailable("a rule has too many clauses for the rule engine")
        # a clause that another implies would make a rule fire twice for one cause: harmless, but slower
        kept: list[frozenset[FieldTest]] = []
        for tests in sorted(expanded, key=len):
            if not any(other <= tests for other in kept):
                kept.append(tests)
        return [tuple(sorted(tests, key=_order)) for tests in kept]


def _order(test: FieldTest) -> tuple[str, int, str]:
    """A fact's state is tested before its value."""
    return test.field.removesuffix(STATE_SUFFIX), -len(test.field), repr(tuple(test))


def _contradicts(tests: frozenset[FieldTest]) -> bool:
    """Whether the tests ask for two states of one fact."""
    states: dict[str, Field] = {}
    return any(
        states.setdefault(test.field, test.constant) != test.constant
        for test in tests
        if test.operator == "" and test.is_of_state
    )


def _fits(group: list[_Clause], clause: _Clause) -> bool:
    fields = {test.field for member in (*group, clause) for test in member.tests}
    return len(group) < MAX_CLAUSES_PER_RULESET and len(fields) <= MAX_FIELDS - len(RESERVED)


def _ruleset(name: str, clauses: list[_Clause]) -> Ruleset:
    definition: dict[str, dict[str, Any]] = {}
    fields: dict[str, None] = {}
    for clause in clauses:
        conjunction: list[dict[str, Any]] = [{"kind": "cfg"}]
        for field, operator, constant in clause.tests:
            fields[field] = None
            conjunction.append({operator: {field: constant}} if operator else {field: constant})
        definition[clause.name] = {"all": [{"m": {"$and": conjunction}}]}
    definition[SENTINEL] = {"all": [{"m": {"kind": "cfg"}}]}
    return Ruleset(name, {clause.name: clause.rule for clause in clauses}, tuple(fields), definition)


def _check_names(fields: Iterable[str]) -> None:
    """Raises EngineUnavailable for field names that the engine can't tell apart."""
    seen: dict[int, str] = {}
    for name in (*fields, *RESERVED):
        other = seen.setdefault(fnv1a(name), name)
        if other != name:
            raise EngineUnavailable(f"the rule engine can't tell the fields '{other}' and '{name}' apart")


def fnv1a(text: str) -> int:
    """32-bit FNV-1a, by which alone the engine tells field names apart."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
