"""`dodona rules check`: loads a book, and proves what should hold of it. docs/analysis.md describes it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dodona.oracle.analysis.baseline import baseline_of
from dodona.oracle.analysis.consequences import consequence_findings
from dodona.oracle.analysis.diagrams import FALSE, TooEntangled
from dodona.oracle.analysis.findings import Finding, load_finding
from dodona.oracle.analysis.lint import lint_conditions
from dodona.oracle.analysis.proofs import example_findings, rule_findings
from dodona.oracle.analysis.properties import property_findings
from dodona.oracle.analysis.regions import Kind, Regions
from dodona.oracle.analysis.source import Load, SourcedBook, condition_paths
from dodona.oracle.analysis.space import Space
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.conditions import Compare, comparisons
from dodona.oracle.language.facts import FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.models.known_models import known_architectures


@dataclass(frozen=True)
class Report:
    """What the check says of one book."""

    book: str
    """The book's name; its file where it does not load."""
    findings: tuple[Finding, ...]
    rules: int = 0
    facts: int = 0
    """Facts that the book tells apart."""
    outcomes: tuple[tuple[Kind, Mapping[str, FactValue]], ...] = ()
    """Each outcome that occurs, with the plainest facts that have it; together they are all outcomes."""
    unserved: tuple[tuple[str, Mapping[str, FactValue]], ...] = ()
    """Where nobody forces a runner and yet none can serve: rules that then refuse the last runner, each
    with the plainest facts.
    """
    exceptions: tuple[str, ...] = ()
    """Properties that are declared broken, and are."""

    @property
    def failed(self) -> bool:
        """Whether there is an error among the findings."""
        return any(finding.level == "error" for finding in self.findings)


def known_regions(book: RuleBook) -> Regions:
    """A book's rules over all known facts."""
    compared = [comparison for entry in book.entries for comparison in comparisons(entry.when)]
    return Regions(Space(book.facts, compared, baseline_of(book)), book)


_MOST_SEARCHES: Final = 50


def check_book(load: Load) -> Report:
    """Check one book. Never raises for a malformed book: that is a finding."""
    try:
        source = load()
    except RuleFileError as error:
        return Report(error.file, (load_finding(error),))
    try:
        return check_sourced(source)
    except TooEntangled as error:
        place = source.place(("rules",), key=True)
        finding = Finding("too-entangled", place, str(error), "Nothing was proved of this book.")
        return Report(source.book.rulebook, (finding,), len(source.book.rules))


def check_sourced(source: SourcedBook) -> Report:
    """Check one book that was loaded."""
    book = source.book
    regions = known_regions(book)
    findings = [
        *_totality(source, regions),
        *lint_conditions(source, regions),
        *rule_findings(source, regions),
        *property_findings(source, regions),
        *example_findings(source, regions),
        *consequence_findings(source, regions),
        *_unknown_architectures(source),
    ]
    findings.sort(key=lambda f: (f.place.file, f.place.line, f.place.column, f.code))
    wrong = {f.rule for f in findings if f.code in ("stale-exception", "wrong-witness")}
    return Report(
        book.rulebook,
        tuple(findings),
        len(book.rules),
        len(regions.space.names),
        tuple((kind, _plainest(regions, region)) for kind, region in sorted_kinds(book, regions)),
        tuple(_unserved(regions)),
        tuple(e.property for e in book.exceptions if e.rule not in wrong or not wrong),
    )


def sorted_kinds(book: RuleBook, regions: Regions) -> list[tuple[Kind, int]]:
    """The outcomes that occur: by the runners' order, those that start first, refused choices last."""
    order = {runner: i for i, runner in enumerate(book.runners)}
    return sorted(
        regions.outcomes.kinds.items(),
        key=lambda item: (len(order) if item[0][0] is None else order[item[0][0]], item[0][1]),
    )


def show_kind(kind: Kind) -> str:
    """An outcome in words."""
    runner, refused = kind
    if runner is None:
        return "choice refused"
    return f"{runner}, startup refused" if refused else runner


def _plainest(regions: Regions, region: int) -> Mapping[str, FactValue]:
    facts = regions.space.witness(region)
    assert facts is not None
    return regions.space.shown(facts)


def _totality(source: SourcedBook, regions: Regions) -> Iterator[Finding]:
    """Every configuration has an outcome, and only one: outcomes cover the space and don't overlap."""
    d, space = regions.space.diagrams, regions.space
    seen = FALSE
    overlap = FALSE
    for region in regions.outcomes.kinds.values():
        overlap = d.either(overlap, d.both(seen, region))
        seen = d.either(seen, region)
    for code, region, message in (
        ("no-outcome", d.less(space.possible, seen), "a configuration gets no outcome"),
        ("two-outcomes", overlap, "a configuration gets two outcomes"),
    ):
        if region != FALSE:
            hint = "Rules leave none open by construction; this is a fault of the analysis."
            yield Finding(
                code, source.place(("rules",), key=True), message, hint, witness=_plainest(regions, region)
            )


def _unserved(regions: Regions) -> Iterator[tuple[str, Mapping[str, FactValue]]]:
    d = regions.space.diagrams
    unforced = d.less(
        regions.space.possible, d.any_of(regions.outcomes.decided[name] for name in regions.outcomes.forced)
    )
    for rule, region in regions.outcomes.refused.items():
        here = d.both(region, unforced)
        if here != FALSE:
            yield rule, _plainest(regions, here)


def _unknown_architectures(source: SourcedBook) -> Iterator[Finding]:
    """Warnings of architectures that no known model has; the first ones with the nearest known name."""
    number = 0
    for rule in source.book.rules:
        for condition, path in condition_paths(rule.when):
            if not isinstance(condition, Compare) or not condition.fact.endswith(
                ("model_config.architectures", "model_config.architecture")
            ):
                continue
            if condition.fact.startswith("speculative_config."):
                continue  # draft models have architectures of their own
            many = isinstance(condition.value, tuple)
            entries = condition.value if isinstance(condition.value, tuple) else (condition.value,)
            for i, name in enumerate(map(str, entries)):
                if condition.op == "is_set" or name in known_architectures():
                    continue
                full: tuple[str | int, ...] = (*path, condition.fact, condition.op)
                place = source.rule_place(rule.id, (*full, i) if many else path)
                number += 1
                # a search takes a hundredth of a second
                known = known_architectures() if number <= _MOST_SEARCHES else ()
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
                yield Finding(
                    "unknown-architecture",
                    place,
                    f"no known model has the architecture '{name}'",
                    f"Did you mean '{close[0]}'?" if close else "Check the spelling, unless it is new.",
                    rule.id,
                    level="warning",
                )
