"""Faults inside one condition: comparisons that can't hold or always hold, and parts that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.findings import Finding
from dodona.oracle.analysis.regions import Regions
from dodona.oracle.analysis.source import SourcedBook, condition_paths
from dodona.oracle.language.condition_text import describe
from dodona.oracle.language.conditions import All, AnyOf, Compare, Condition, Not
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.yaml_source import DataPath


def lint_conditions(source: SourcedBook, regions: Regions) -> Iterator[Finding]:
    """Findings about each rule's condition by itself. `regions`: over known facts."""
    for rule in source.book.rules:
        constant = list(_constant_comparisons(source, regions, rule))
        yield from (finding for _, finding in constant)
        part = regions.rules[rule.id]
        if part.fires != FALSE and part.fires != regions.space.possible:
            # where the whole never or always fires, that is said once
            yield from _idle_parts(source, regions, rule, [path for path, _ in constant])


def _constant_comparisons(
    source: SourcedBook, regions: Regions, rule: Rule
) -> Iterator[tuple[DataPath, Finding]]:
    space = regions.space
    for condition, path in condition_paths(rule.when):
        if not isinstance(condition, Compare):
            continue
        truth = space.truth(condition)
        spec = space.registry[condition.fact]
        if truth.holds == FALSE:
            message, why = "can never hold", "no value of the fact makes it true"
        elif truth.fails == FALSE:
            message, why = "always holds", "no value of the fact makes it false"
        else:
            continue
        place = source.rule_place(rule.id, (*path, condition.fact), key=True)
        text = describe(condition, space.registry)
        bound = "" if spec.minimum is None else f" ('{spec.name}' is at least {spec.minimum})"
        yield (
            path,
            Finding(
                "constant-comparison",
                place,
                f"'{text}' {message}: {why}{bound}",
                "Mend the comparison, or remove it.",
                rule.id,
            ),
        )


def _idle_parts(
    source: SourcedBook, regions: Regions, rule: Rule, reported: list[DataPath]
) -> Iterator[Finding]:
    """Parts of `all` and `any` without which the rule fires just where it does."""
    space = regions.space

    def region(condition: Condition) -> int:
        return space.diagrams.both(space.truth(condition).holds, space.possible)

    whole = region(rule.when)
    removed: set[DataPath] = set()
    for group, path in condition_paths(rule.when):
        if not isinstance(group, (All, AnyOf)) or any(path[: len(gone)] == gone for gone in removed):
            continue
        word = "all" if isinstance(group, All) else "any"
        kept = len(group.parts)
        # from the last one back: of two equal parts, the later one is reported
        for i in reversed(range(len(group.parts))):
            here = (*path, word, i)
            if kept == 1 or any(said[: len(here)] == here for said in reported):
                continue
            if region(_without(rule.when, removed | {here})) != whole:
                continue
            kept -= 1
            removed.add(here)
            text = describe(group.parts[i], space.registry)
            if word == "all":
                message = f"the condition '{text}' adds nothing: the others already imply it"
            elif region(group.parts[i]) == FALSE:
                message = f"the branch '{text}' can't be reached: no facts make it hold"
            else:
                message = f"the branch '{text}' adds nothing: the rule is the same without it"
            yield Finding(
                "idle-condition" if word == "all" else "idle-branch",
                source.rule_place(rule.id, here),
                message,
                "Remove it, or mend what it was meant to say.",
                rule.id,
            )


def _without(condition: Condition, removed: set[DataPath], path: DataPath = ("when",)) -> Condition:
    """A condition less the parts at some paths; each group keeps at least one."""
    if isinstance(condition, Compare):
        return condition
    if isinstance(condition, Not):
        return Not(_without(condition.part, removed, (*path, "not")))
    word = "all" if isinstance(condition, All) else "any"
    parts = tuple(
        _without(part, removed, (*path, word, i))
        for i, part in enumerate(condition.parts)
        if (*path, word, i) not in removed
    )
    return All(parts) if isinstance(condition, All) else AnyOf(parts)
