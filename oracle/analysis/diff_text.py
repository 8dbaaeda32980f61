"""A difference of rule books as text, Markdown and JSON data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from dodona.oracle.analysis.blast import Radius
from dodona.oracle.analysis.check import show_kind
from dodona.oracle.analysis.diff import Decision, Difference, OutcomeChange, RuleChange, Witness
from dodona.oracle.analysis.findings import facts_data, show_facts
from dodona.oracle.analysis.regions import Kind
from dodona.oracle.markdown import cell, table

MAX_NAMES: Final = 12
"""Most architectures that text lists by name."""

_SIGNS: Mapping[str, str] = {"added": "+", "removed": "-", "changed": "~", "renamed": "="}


def as_text(found: Difference) -> Iterator[str]:
    """Lines for a terminal."""
    if not found:
        yield f"{found.before} → {found.after}: no difference"
        yield from (f"  note: {note}" for note in found.notes)
        return
    yield f"{found.before} → {found.after}: verdicts differ"
    if found.outcomes:
        yield "Outcomes:"
    for change in found.outcomes:
        unknown = "" if change.known else "  (only where facts aren't known)"
        yield f"  {show_kind(change.before)} → {show_kind(change.after)}{unknown}"
        yield f"      for {show_facts(change.witness.facts)}"
    if found.rules:
        yield "Rules:"
    for rule in found.rules:
        yield f"  {_SIGNS[rule.status]} {rule.rule}: {'; '.join(rule.what)}  [{rule.place}]"
        yield f"      for {show_facts(rule.witness.facts)}"
        yield f"      {effect(rule.witness)}"
    if found.settings:
        yield "Settings:"
    yield from (f"  {setting}" for setting in found.settings)
    if found.radius is not None:
        yield "Architectures:"
        yield from (f"  {line}" for line in _radius(found.radius))
    if found.notes:
        yield "Not counted:"
    yield from (f"  {note}" for note in found.notes)


def as_markdown(found: Difference) -> Iterator[str]:
    """Lines of Markdown for the summary of a pull request."""
    title = f"### `{found.before}` → `{found.after}`"
    if not found:
        yield from (title, "", "No verdict changes.")
        return
    yield from (title, "")
    if found.outcomes:
        yield from table(("outcome before", "after", "for instance"), map(_outcome_cells, found.outcomes))
        yield ""
    if found.rules:
        yield from table(("rule", "change", "for instance", "effect"), map(_rule_cells, found.rules))
        yield ""
    if found.settings:
        yield from (f"- {cell(setting)}" for setting in found.settings)
        yield ""
    if found.radius is not None:
        yield "**Blast radius**"
        yield ""
        yield from (f"- {line}" for line in _radius(found.radius))


def as_data(found: Difference) -> dict[str, Any]:
    """As JSON data."""
    radius = found.radius
    return {
        "before": found.before,
        "after": found.after,
        "differs": bool(found),
        "outcomes": [
            {
                "before": _kind(change.before),
                "after": _kind(change.after),
                "known": change.known,
                "witness": _witness(change.witness),
            }
            for change in found.outcomes
        ],
        "rules": [_rule(rule) for rule in found.rules],
        "settings": list(found.settings),
        "notes": list(found.notes),
        "architectures": None
        if radius is None
        else {
            "known": radius.known,
            "plain": {name: {"before": _kind(a), "after": _kind(b)} for name, (a, b) in radius.plain.items()},
            "featured": list(radius.featured),
        },
    }


def effect(witness: Witness) -> str:
    """What differs for a witness, in words."""
    before, after = witness.before, witness.after
    if witness.effect == "outcome":
        return f"{show_kind(before.kind)} → {show_kind(after.kind)}"
    both = f"{show_kind(before.kind)} in both"
    if witness.effect == "refusals":
        return f"{both}; refused by {_list(before.refusals)} → {_list(after.refusals)}"
    if witness.effect == "unsupported":
        runners = [r for r in after.unsupported if before.unsupported.get(r) != after.unsupported[r]]
        lacks = "; ".join(
            f"{r} lacks {_list(before.unsupported.get(r, ()))} → {_list(after.unsupported[r])}"
            for r in runners
        )
        return f"{both}; {lacks}"
    return f"{both}; fired: {_list(before.reasons)} → {_list(after.reasons)}"


def _radius(radius: Radius) -> Iterator[str]:
    by_change: dict[tuple[Kind, Kind], list[str]] = {}
    for name, change in radius.plain.items():
        by_change.setdefault(change, []).append(name)
    if not by_change:
        yield f"in a plain configuration, none of the {radius.known} known"
    for (before, after), names in by_change.items():
        yield (
            f"in a plain configuration, {len(names)} of the {radius.known} known: {show_kind(before)} → "
            f"{show_kind(after)}: {_some(names)}"
        )
    if not radius.featured:
        return
    others = "other " if by_change else ""
    if len(radius.plain) + len(radius.featured) == radius.known:
        yield f"with some feature, or on some machine, every {others}one of them"
    else:
        count = len(radius.featured)
        yield f"with some feature, or on some machine, {count} {others}of them: {_some(radius.featured)}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - MAX_NAMES
    return ", ".join(listed[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "nothing"


def _outcome_cells(change: OutcomeChange) -> list[str]:
    unknown = "" if change.known else " (facts unknown)"
    after = f"{show_kind(change.after)}{unknown}"
    return [show_kind(change.before), after, _code(show_facts(change.witness.facts))]


def _rule_cells(change: RuleChange) -> list[str]:
    what = cell(f"{change.status}: " + "; ".join(change.what))
    shown = _code(show_facts(change.witness.facts))
    return [f"`{change.rule}`", what, shown, cell(effect(change.witness))]


def _code(text: str) -> str:
    return f"`{cell(text)}`"


def _kind(kind: Kind) -> dict[str, Any]:
    return {"runner": kind[0], "refused": kind[1]}


def _rule(change: RuleChange) -> dict[str, Any]:
    return {
        "rule": change.rule,
        "status": change.status,
        "what": list(change.what),
        "file": change.place.file,
        "line": change.place.line,
        "column": change.place.column,
        "effect": change.witness.effect,
        "witness": _witness(change.witness),
    }


def _witness(witness: Witness) -> dict[str, Any]:
    return {
        "facts": facts_data(witness.facts),
        "all_facts": facts_data(witness.all_facts),
        "before": _decision(witness.before),
        "after": _decision(witness.after),
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        **_kind(decision.kind),
        "decided_by": decision.decided_by,
        "reasons": list(decision.reasons),
        "refusals": list(decision.refusals),
        "unsupported": {runner: list(features) for runner, features in decision.unsupported.items()},
    }
