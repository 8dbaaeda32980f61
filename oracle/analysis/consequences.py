"""Proofs about the consequences of a book, and how those of two books differ."""

from __future__ import annotations

from collections.abc import Iterator

from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.findings import Finding, show_facts
from dodona.oracle.analysis.regions import Regions
from dodona.oracle.analysis.source import SourcedBook
from dodona.oracle.language.condition_text import describe
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.language.consequence import Consequence
from dodona.oracle.language.rulebook import RuleBook


def consequence_findings(source: SourcedBook, regions: Regions) -> Iterator[Finding]:
    """Consequences that are never reported: their condition can't hold, or not where one of their runners is
    chosen and starts; and examples that do not show what they should.
    """
    d, space = regions.space.diagrams, regions.space
    for found in source.book.consequences:
        place = source.rule_place(found.id, ("when",), key=True)
        holds = d.both(space.truth(found.when, source.book.assume).holds, space.possible)
        if holds == FALSE:
            hint = "Mend the condition, or remove the consequence."
            yield Finding("dead-consequence", place, "`when` can't hold", hint, found.id)
            continue
        for i, runner in enumerate(found.runners):
            if d.both(holds, regions.outcomes.kinds.get((runner, False), FALSE)) == FALSE:
                facts = space.witness(holds)
                assert facts is not None
                yield Finding(
                    "dead-consequence",
                    source.rule_place(found.id, ("runners", i)),
                    f"is never reported of {runner}: where `when` holds, it is not chosen or does not start",
                    f"Remove {runner} from `runners`, or mend the condition.",
                    found.id,
                    space.shown(facts),
                )
        yield from _example_findings(source, found)


def _example_findings(source: SourcedBook, found: Consequence) -> Iterator[Finding]:
    for side, expected in (("fires", True), ("passes", False)):
        for number, example in enumerate(getattr(found.examples, side)):
            if evaluate(found.when, example) is not expected:
                yield Finding(
                    "example-fails",
                    source.rule_place(found.id, ("examples", side, number)),
                    f"the example {show_facts(example)} is under `{side}`, but `when` does not come out so",
                    f"It holds where {describe(found.when, source.book.facts)}; facts left out are unknown.",
                    found.id,
                )


def consequence_changes(before: RuleBook, after: RuleBook) -> tuple[list[str], list[str]]:
    """What users see of two books' consequences that differ, and what is only worded or borne out
    otherwise."""
    was = {found.id: found for found in before.consequences}
    now = {found.id: found for found in after.consequences}
    seen: list[str] = []
    notes: list[str] = []
    for name in dict.fromkeys([*was, *now]):
        old, new = was.get(name), now.get(name)
        if old is None and new is not None:
            seen.append(f"consequence {name} added: {_summary(new)}")
        elif new is None and old is not None:
            seen.append(f"consequence {name} removed: {_summary(old)}")
        elif old is not None and new is not None and old != new:
            keys = [key for key in Consequence.model_fields if getattr(old, key) != getattr(new, key)]
            felt = [key for key in keys if key in ("severity", "runners", "when", "feature", "mend")]
            if felt:
                seen.append(f"consequence {name} changed: {', '.join(felt)}")
            else:
                notes.append(f"consequence {name}: other {', '.join(keys)}")
    return seen, notes


def _summary(found: Consequence) -> str:
    return f"{found.severity} on {', '.join(found.runners)}, {found.feature}"
