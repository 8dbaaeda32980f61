"""Properties of a whole book, where it breaks them, and the exceptions that it declares.

`MEANINGS` says what each property is. One more, `only-reason`, is a property of single rules: each require
and veto can be the only reason for its outcome (see `proofs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.findings import Finding, show_facts
from dodona.oracle.analysis.regions import Regions, kinds_differ
from dodona.oracle.analysis.source import SourcedBook
from dodona.oracle.language.rulebook import DeclaredException
from dodona.oracle.systems.system import OVERRIDE

MEANINGS: Mapping[str, str] = {
    "monotone": "adding one feature that the preferred runner lacks never turns another runner into it",
    "user-decides": "where the user forces a runner, that runner is chosen or the choice is refused",
    "preferred-by-default": (
        "where nobody forces a runner and nothing rules the preferred one out, it is chosen and starts"
    ),
}


@dataclass(frozen=True)
class Broken:
    """Where a property does not hold (over known facts): empty where it is proved."""

    property: str
    region: int
    message: str


def broken_properties(regions: Regions) -> Iterator[Broken]:
    """Each property of the whole book with the facts that break it."""
    yield Broken("user-decides", _user_overruled(regions), "what the user forces is overruled")
    yield _not_by_default(regions)
    yield Broken(
        "monotone",
        _turned_into_preferred(regions),
        "a feature that the preferred runner lacks makes it the one that is chosen",
    )


def _overridden(regions: Regions) -> int:
    """Where the user forces a runner."""
    space = regions.space
    if OVERRIDE not in space.registry:
        return FALSE
    return space.diagrams.both(space.where(OVERRIDE, space.registry[OVERRIDE].domain or ()), space.possible)


def _user_overruled(regions: Regions) -> int:
    space, d = regions.space, regions.space.diagrams
    if OVERRIDE not in space.registry or OVERRIDE not in regions.book.reads:
        return FALSE
    overruled = []
    for runner in regions.book.runners:
        obeyed = d.any_of(r for (chosen, _), r in regions.outcomes.kinds.items() if chosen in (runner, None))
        forced = d.both(space.where(OVERRIDE, [runner]), space.possible)
        overruled.append(d.less(forced, obeyed))
    return d.any_of(overruled)


def _not_by_default(regions: Regions) -> Broken:
    d = regions.space.diagrams
    first = regions.book.runners[0]
    against = d.any_of(p.fires for p in regions.rules.values() if p.kind != "override" and first in p.runners)
    free = d.less(regions.space.possible, _overridden(regions))
    clean = d.less(free, against)
    preferred = regions.outcomes.kinds.get((first, False), FALSE)
    if clean == FALSE:
        message = f"{first} never serves unless it is forced: something always rules it out"
        return Broken("preferred-by-default", d.less(free, preferred), message)
    message = f"{first} is not chosen although nothing rules it out"
    return Broken("preferred-by-default", d.less(clean, preferred), message)


def _turned_into_preferred(regions: Regions) -> int:
    """The facts that get the preferred runner and have one feature more than facts that get another
    runner."""
    space, d = regions.space, regions.space.diagrams
    preferred = regions.book.runners[0]
    kinds = regions.outcomes.kinds
    chosen = d.any_of(r for (runner, _), r in kinds.items() if runner == preferred)
    other = d.any_of(r for (runner, _), r in kinds.items() if runner not in (preferred, None))
    against = [p for p in regions.rules.values() if p.kind != "override" and preferred in p.runners]
    found = []
    for name in space.names:
        if space.registry[name].source != "config":
            continue
        steps = space.steps(name)
        for variable, before in steps:
            came_from = d.restrict(other, variable, before)
            for _, after in steps:
                if after == before or came_from == FALSE:
                    continue
                region = d.both(came_from, d.restrict(chosen, variable, after))
                fired = [
                    (d.restrict(p.fires, variable, before), d.restrict(p.fires, variable, after))
                    for p in against
                    if region != FALSE and name in regions.book.by_id[p.id].reads
                ]
                for was, now in fired:
                    region = d.less(region, d.less(was, now))
                region = d.both(region, d.any_of(d.less(now, was) for was, now in fired))
                found.append(d.both(region, d.values(variable, [after])))
    return d.both(d.any_of(found), space.possible)


# --- declared exceptions


def property_findings(source: SourcedBook, regions: Regions) -> Iterator[Finding]:
    """Properties that are broken and not declared so, or declared so and not broken, or with a wrong
    witness.
    """
    declared = {
        exception.property: i
        for i, exception in enumerate(source.book.exceptions)
        if exception.property != "only-reason"
    }
    for broken in broken_properties(regions):
        if broken.property in declared:
            index = declared[broken.property]
            yield from confirm(source, regions, index, broken.region)
        elif broken.region != FALSE:
            space = regions.space
            facts = space.witness(broken.region)
            assert facts is not None
            yield Finding(
                f"not-{broken.property}",
                source.place(("rulebook",)),
                f"{broken.message}; a book should keep: {MEANINGS[broken.property]}",
                "Mend the rules, or declare it under `exceptions` with this witness.",
                witness=space.shown(facts),
            )


def confirm(source: SourcedBook, regions: Regions, index: int, region: int) -> Iterator[Finding]:
    """Findings about exception number `index`, which says that the facts of `region` break a property."""
    exception: DeclaredException = source.book.exceptions[index]
    space = regions.space
    if region == FALSE:
        yield Finding(
            "stale-exception",
            source.place(("exceptions", index, "property")),
            f"'{exception.property}' is declared broken, but holds",
            "Remove the exception.",
            exception.rule,
        )
    elif not space.contains(region, {**space.baseline, **exception.witness}):
        facts = space.witness(region)
        assert facts is not None
        yield Finding(
            "wrong-witness",
            source.place(("exceptions", index, "witness")),
            f"{show_facts(exception.witness)} does not break '{exception.property}'",
            "This does; facts left out are as in a plain configuration.",
            exception.rule,
            witness=space.shown(facts),
        )


def idle_region(regions: Regions, rule: str) -> int:
    """Where a rule fires and yet, with what it refines switched off, the outcome is the same without it."""
    space, d = regions.space, regions.space.diagrams
    kept = regions.without(*regions.book.refined_by(rule))
    fewer = [part for part in kept if part.id != rule]
    differ = kinds_differ(space, regions.kinds_of(kept), regions.kinds_of(fewer))
    return d.less(regions.rules[rule].fires, differ)
