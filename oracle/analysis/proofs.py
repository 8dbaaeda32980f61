"""Proofs about the rules of a book together, over all known facts."""

from __future__ import annotations

from collections.abc import Iterator

from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.findings import Finding, show_facts
from dodona.oracle.analysis.properties import confirm, idle_region
from dodona.oracle.analysis.regions import Regions, RuleRegion, kinds_differ
from dodona.oracle.analysis.source import SourcedBook
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.decide.outcome import decide
from dodona.oracle.language.rule import Rule, RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.system import OVERRIDE


def rule_findings(source: SourcedBook, regions: Regions) -> Iterator[Finding]:
    """Findings about single rules: dead, always firing, shadowed, without effect, wrongly refining."""
    for rule in source.book.rules:
        part = regions.rules[rule.id]
        extreme = _dead_or_always(source, regions, rule)
        if extreme is not None:
            yield extreme
            continue
        if rule.kind == "override":
            yield from _idle_override(source, regions, part)
            continue
        yield from _wrong_refines(source, regions, rule)
        shadow = _shadow(source, regions, part)
        if shadow is not None:
            yield shadow
        else:
            yield from _only_reason(source, regions, rule)


def _dead_or_always(source: SourcedBook, regions: Regions, rule: Rule) -> Finding | None:
    fires, place = regions.rules[rule.id].fires, source.rule_place(rule.id, ("when",), key=True)
    says = "`when` always holds" if rule.kind == "require" else "`when` can't hold"
    if fires == FALSE:
        return Finding(
            "dead-rule", place, f"never fires: {says}", "Mend the condition, or remove the rule.", rule.id
        )
    if fires == regions.space.possible:
        says = "`when` can't hold" if rule.kind == "require" else "`when` always holds"
        return Finding(
            "always-fires",
            place,
            f"fires for every configuration: {says}",
            "Mend the condition: a rule that says nothing about the configuration decides for all of them.",
            rule.id,
        )
    return None


def _idle_override(source: SourcedBook, regions: Regions, part: RuleRegion) -> Iterator[Finding]:
    space, d = regions.space, regions.space.diagrams
    effective = regions.effective(part, regions.rules.values())
    if regions.outcomes.decided[part.id] == FALSE:
        before = [
            p
            for p in regions.rules.values()
            if p.kind == "override"
            and p.precedence < part.precedence
            and d.both(p.fires, part.fires) != FALSE
        ]
        facts = space.witness(part.fires)
        assert facts is not None
        yield Finding(
            "never-decides",
            source.rule_place(part.id, ("precedence",), key=True),
            "never decides: wherever it fires, "
            + (
                f"an override of lower precedence does too ({', '.join(p.id for p in before)})"
                if effective != FALSE
                else f"something rules {part.unless_vetoed} out, and it is passed over"
            ),
            "Change its precedence or its condition, or remove it.",
            part.id,
            space.shown(facts),
        )
    elif part.unless_vetoed is not None and effective == part.fires:
        yield Finding(
            "idle-unless-vetoed",
            source.rule_place(part.id, ("unless_vetoed",), key=True),
            f"is never passed over: nothing rules {part.unless_vetoed} out where it fires",
            "Remove `unless_vetoed`.",
            part.id,
        )


def _wrong_refines(source: SourcedBook, regions: Regions, rule: Rule) -> Iterator[Finding]:
    space, d = regions.space, regions.space.diagrams
    for i, broader in enumerate(rule.refines):
        beyond = d.less(regions.rules[rule.id].fires, regions.rules[broader].fires)
        facts = space.witness(beyond)
        if facts is not None:
            yield Finding(
                "wrong-refines",
                source.rule_place(rule.id, ("refines", i)),
                f"is no special case of '{broader}': it fires where that does not",
                "Remove it from `refines`, or mend one of the two conditions.",
                rule.id,
                space.shown(facts),
            )


def _covers(broad: RuleRegion, narrow: RuleRegion, regions: Regions) -> bool:
    if broad.kind == "override" or not set(narrow.runners) <= set(broad.runners):
        return False
    return narrow.stages <= broad.stages and regions.space.diagrams.inside(narrow.fires, broad.fires)


def _shadow(source: SourcedBook, regions: Regions, part: RuleRegion) -> Finding | None:
    refined = regions.book.refined_by(part.id)
    order = list(regions.rules)
    for other in regions.rules.values():
        if other.id == part.id or other.id in refined or not _covers(other, part, regions):
            continue
        if _covers(part, other, regions) and (
            order.index(other.id) > order.index(part.id) or part.id in regions.book.refined_by(other.id)
        ):
            continue  # the two are the same, which is said of the other
        facts = regions.space.witness(part.fires)
        assert facts is not None
        equal = other.fires == part.fires
        return Finding(
            "shadowed",
            source.rule_place(part.id, ("when",), key=True),
            f"fires {'just' if equal else 'only'} where '{other.id}' fires, which rules out the same",
            f"Remove it, mend its condition, or write `refines: [{other.id}]` if it is a special case.",
            part.id,
            regions.space.shown(facts),
        )
    return None


def _only_reason(source: SourcedBook, regions: Regions, rule: Rule) -> Iterator[Finding]:
    """Whether a rule can be the only reason for its outcome, with what it refines switched off."""
    exceptions = [
        i
        for i, exception in enumerate(source.book.exceptions)
        if exception.property == "only-reason" and exception.rule == rule.id
    ]
    holds = _shown_by_a_point(regions, rule, ())
    idle = FALSE if holds else idle_region(regions, rule.id)
    holds = holds or idle != regions.rules[rule.id].fires
    for index in exceptions:
        yield from confirm(source, regions, index, FALSE if holds else idle)
    if holds:
        yield from _idle_runners(source, regions, rule)
    elif not exceptions:
        facts = regions.space.witness(idle)
        assert facts is not None
        yield Finding(
            "not-only-reason",
            source.rule_place(rule.id, ("when",), key=True),
            "changes no outcome: wherever it fires, other rules come to the same without it",
            "Remove it, say what it `refines`, or declare it under `exceptions` (property: only-reason).",
            rule.id,
            regions.space.shown(facts),
        )


def _idle_runners(source: SourcedBook, regions: Regions, rule: Rule) -> Iterator[Finding]:
    """Runners that a rule rules out without any effect on outcomes."""
    if len(rule.runners) < 2:
        return
    refined = regions.book.refined_by(rule.id)
    for i, runner in enumerate(rule.runners):
        others = tuple(r for r in rule.runners if r != runner)
        if _shown_by_a_point(regions, rule, others):
            continue
        kinds = regions.kinds_of(regions.without(*refined))
        changed = [p for p in regions.with_runners(rule.id, others) if p.id not in refined]
        if kinds_differ(regions.space, kinds, regions.kinds_of(changed)) == FALSE:
            yield Finding(
                "idle-runner",
                source.rule_place(rule.id, ("runners", i)),
                f"ruling {runner} out changes no outcome",
                f"Remove {runner} from `runners`, if that is not what was meant.",
                rule.id,
            )


def _shown_by_a_point(regions: Regions, rule: Rule, runners: tuple[RunnerName, ...]) -> bool:
    """Tests one point: the plainest facts for which the rule fires, with and without a forced runner. True if
    their outcome changes when the rule rules out only `runners`. False proves nothing.
    """
    book, space = regions.book, regions.space
    facts = space.witness(regions.rules[rule.id].fires)
    assert facts is not None
    rules = tuple(
        other.model_copy(update={"runners": runners}) if other.id == rule.id else other
        for other in book.rules
    )
    changed = RuleBook.model_construct(**{**dict(book), "rules": rules})
    forced = (None, *(space.registry[OVERRIDE].domain or ())) if OVERRIDE in space.registry else ()
    for point in [{**facts, OVERRIDE: runner} for runner in forced] or [facts]:
        found = evaluate(book, {**space.baseline, **point}, without=book.refined_by(rule.id))
        if found.outcome.kind != decide(changed, found.firings).kind:
            return True
    return False


def example_findings(source: SourcedBook, regions: Regions) -> Iterator[Finding]:
    """Examples whose facts can't occur together."""
    space = regions.space
    for rule in source.book.entries:
        for kind in ("fires", "passes"):
            for i, example in enumerate(getattr(rule.examples, kind)):
                if space.given(example) == FALSE:
                    yield Finding(
                        "impossible-example",
                        source.rule_place(rule.id, ("examples", kind, i)),
                        f"no configuration has these facts together: {show_facts(example)}",
                        "Where a section is null, its fields are null.",
                        rule.id,
                    )
