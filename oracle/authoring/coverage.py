"""The examples of a rule book as tests, and what of its conditions they reach.

A part of `any` is reached by an example in which it holds and no other part does; a part of `all` by one in
which it fails and no other part does: the example then depends on that part. For lists, the values that occur
in examples are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dodona.oracle.analysis.findings import Finding, show_facts
from dodona.oracle.analysis.source import Place, SourcedBook, condition_paths
from dodona.oracle.language.condition_text import describe
from dodona.oracle.language.conditions import All, AnyOf, Facts, comparisons, evaluate
from dodona.oracle.language.consequence import Consequence
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.yaml_source import DataPath

Entry = Rule | Consequence
"""What has examples."""


@dataclass
class Counts:
    """How much there is, and how much of it examples reach."""

    rules: int = 0
    examples: int = 0
    failed: int = 0
    branches: int = 0
    branches_reached: int = 0
    values: int = 0
    values_reached: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass(frozen=True)
class RuleReport:
    """The examples of one rule."""

    rule: str
    place: Place
    findings: tuple[Finding, ...]
    counts: Counts
    unreached_values: Mapping[str, tuple[bool | int | str, ...]] = field(default_factory=dict)
    """By fact: listed values that no example has."""


@dataclass(frozen=True)
class BookReport:
    """The examples of one book."""

    book: str
    rules: tuple[RuleReport, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all rules, in the book's order."""
        return tuple(finding for rule in self.rules for finding in rule.findings)


def run_examples(source: SourcedBook) -> BookReport:
    """Run the examples of every rule and consequence of a book."""
    book = source.book
    return BookReport(book.rulebook, tuple(_report(source, entry) for entry in book.entries))


def distinct(reports: Iterable[BookReport]) -> list[RuleReport]:
    """The rules of several books, each text counted once: books that extend others share it."""
    found: dict[tuple[Place, str], RuleReport] = {}
    for report in reports:
        for rule in report.rules:
            # a rule that a book changes in part is another rule at the same place
            found.setdefault((rule.place, repr((rule.findings, rule.counts))), rule)
    return list(found.values())


def totals(reports: Iterable[RuleReport]) -> Counts:
    """The sums over several rules."""
    counts = Counts()
    for report in reports:
        counts += report.counts
    return counts


def _report(source: SourcedBook, rule: Entry) -> RuleReport:
    failures = [*_failures(source, rule, "fires", True), *_failures(source, rule, "passes", False)]
    examples: Sequence[Facts] = [*rule.examples.fires, *rule.examples.passes]
    branches = list(_branches(rule, examples))
    unreached = [_unreached(source, rule, path, word) for path, word, reached in branches if not reached]
    values = _listed_values(rule, examples)
    counts = Counts(
        rules=1,
        examples=len(examples),
        failed=len(failures),
        branches=len(branches),
        branches_reached=sum(reached for _, _, reached in branches),
        values=sum(len(listed) for listed, _ in values.values()),
        values_reached=sum(len(reached) for _, reached in values.values()),
    )
    missing = {
        fact: tuple(value for value in listed if value not in reached)
        for fact, (listed, reached) in values.items()
        if len(reached) < len(listed)
    }
    place = source.rule_place(rule.id)
    return RuleReport(rule.id, place, (*failures, *unreached), counts, missing)


def _failures(
    source: SourcedBook, rule: Entry, side: Literal["fires", "passes"], expected: bool
) -> Iterator[Finding]:
    for number, example in enumerate(getattr(rule.examples, side)):
        value = evaluate(rule.fires_when, example)
        if value is expected:
            continue
        missing = [name for name in rule.reads if example.get(name, UNKNOWN) is UNKNOWN]
        if value is None:
            came_out = "leaves it open whether the rule fires"
            hint = f"Give a value to {', '.join(missing)}: facts left out are unknown."
        else:
            came_out = "makes the rule fire" if value else "does not make the rule fire"
            hint = f"The rule fires where {describe(rule.fires_when, source.book.facts)}."
        yield Finding(
            "example-fails",
            source.rule_place(rule.id, ("examples", side, number)),
            f"the example {show_facts(example)} is under `{side}`, but {came_out}",
            hint,
            rule.id,
        )


def _branches(rule: Entry, examples: Sequence[Facts]) -> Iterator[tuple[DataPath, str, bool]]:
    """Each part of an `all` or `any`: its path, which of the two, and whether an example hangs on it."""
    for condition, path in condition_paths(rule.when):
        if not isinstance(condition, (All, AnyOf)) or len(condition.parts) < 2:
            continue
        settles = isinstance(condition, AnyOf)
        word = "any" if settles else "all"
        answers = [[evaluate(part, example) for part in condition.parts] for example in examples]
        for number in range(len(condition.parts)):
            reached = any(row[number] is settles and row.count(settles) == 1 for row in answers)
            yield (*path, word, number), word, reached


def _unreached(source: SourcedBook, rule: Entry, path: DataPath, word: str) -> Finding:
    part = {p: c for c, p in condition_paths(rule.when)}[path]
    text = describe(part, source.book.facts)
    others = "no other part does" if word == "any" else "all other parts may hold"
    return Finding(
        "unreached-branch",
        source.rule_place(rule.id, path),
        f"no example hangs on this part of `{word}`: {text}",
        f"Add one in which this part {'holds' if word == 'any' else 'fails'} and {others}.",
        rule.id,
        level="warning",
    )


def _listed_values(
    rule: Entry, examples: Sequence[Facts]
) -> Mapping[str, tuple[list[bool | int | str], list[bool | int | str]]]:
    """By fact: the values of lists that it is compared with, and those of them that examples have."""
    listed: dict[str, list[bool | int | str]] = {}
    for comparison in comparisons(rule.when):
        if isinstance(comparison.value, tuple):
            known = listed.setdefault(comparison.fact, [])
            known += [value for value in comparison.value if value not in known]
    found = {}
    for fact, values in listed.items():
        seen: set[Any] = set()
        for example in examples:
            value = example.get(fact, UNKNOWN)
            seen |= set(value) if isinstance(value, tuple) else {value}
        found[fact] = (values, [value for value in values if value in seen])
    return found
