"""A rule book as regions of the space of facts: where each rule fires, and where each outcome holds.

This repeats the meaning of `dodona.oracle.decide.evaluate` and `dodona.oracle.decide.outcome.decide` for all
facts at once, on purpose: regions are computed by decision diagrams, not fact by fact, and tests compare the
two point by point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dodona.oracle.analysis.diagrams import FALSE
from dodona.oracle.analysis.space import Space
from dodona.oracle.decide.outcome import FALLBACK, PREFERRED
from dodona.oracle.language.rule import Rule, RunnerName
from dodona.oracle.language.rulebook import RuleBook

Kind = tuple[RunnerName | None, bool]
"""The visible part of an outcome: the runner (None if the choice is refused), and whether it is refused."""

_STAGES: Mapping[str, frozenset[str]] = {
    "choice": frozenset({"choice"}),
    "startup": frozenset({"startup"}),
    "both": frozenset({"choice", "startup"}),
}
_CHOICE = frozenset({"choice"})
_STARTUP = frozenset({"startup"})
_ANY = frozenset({"choice", "startup"})


@dataclass(frozen=True)
class RuleRegion:
    """One rule: what `decide` reads of it, and the region where it fires."""

    id: str
    kind: Literal["override", "require", "veto"]
    runners: tuple[RunnerName, ...]
    stages: frozenset[str]
    precedence: int
    unless_vetoed: RunnerName | None
    fires: int


@dataclass(frozen=True)
class Outcomes:
    """Where each outcome of a book holds; together the regions of `kinds` are the whole space."""

    kinds: Mapping[Kind, int]
    decided: Mapping[str, int]
    """Per override, "preferred" and "fallback": where it decides."""
    refused: Mapping[str, int]
    """Per rule: where it is among the refusals."""

    @property
    def forced(self) -> tuple[str, ...]:
        """Ids of the overrides."""
        return tuple(name for name in self.decided if name not in (PREFERRED, FALLBACK))


class Regions:
    """The rules of one book over a space that tells all their comparisons apart."""

    def __init__(self, space: Space, book: RuleBook) -> None:
        self.space = space
        self.book = book
        self.rules: Mapping[str, RuleRegion] = {rule.id: self._region(rule) for rule in book.rules}
        self.outcomes = self.outcomes_of(self.rules.values())

    def _region(self, rule: Rule) -> RuleRegion:
        d, space = self.space.diagrams, self.space
        truth = space.truth(rule.fires_when, self.book.assume)
        # Unknown facts count against a runner, and decide nothing by themselves.
        fires = truth.holds if rule.kind == "override" else d.negate(truth.fails)
        return RuleRegion(
            rule.id,
            rule.kind,
            rule.runners,
            _STAGES[rule.stage],
            rule.precedence or 0,
            rule.unless_vetoed,
            d.both(fires, space.possible),
        )

    def against(self, rules: Iterable[RuleRegion], runner: RunnerName, stages: frozenset[str]) -> int:
        """Where a require or veto of one of the stages rules a runner out."""
        return self.space.diagrams.any_of(
            p.fires for p in rules if p.kind != "override" and runner in p.runners and p.stages & stages
        )

    def effective(self, rule: RuleRegion, rules: Iterable[RuleRegion]) -> int:
        """Where an override fires and isn't passed over."""
        if rule.unless_vetoed is None:
            return rule.fires
        return self.space.diagrams.less(rule.fires, self.against(rules, rule.unless_vetoed, _CHOICE))

    def kinds_of(self, rules: Iterable[RuleRegion]) -> Mapping[Kind, int]:
        """Where each kind of outcome holds, for a variant of the book's rules."""
        return self._fold(list(rules), refusals=False).kinds

    def outcomes_of(self, rules: Iterable[RuleRegion]) -> Outcomes:
        """Where each outcome holds, for a variant of the book's rules."""
        return self._fold(list(rules), refusals=True)

    def _fold(self, rules: list[RuleRegion], *, refusals: bool) -> Outcomes:
        d = self.space.diagrams
        kinds: dict[Kind, int] = {}
        decided: dict[str, int] = {}
        refused: dict[str, int] = {}

        def settle(region: int, kind: Kind) -> None:
            if region != FALSE:
                kinds[kind] = d.either(kinds.get(kind, FALSE), region)

        def refuse(region: int, runner: RunnerName, stages: frozenset[str]) -> None:
            if refusals:
                for p in rules:
                    if p.kind != "override" and runner in p.runners and p.stages & stages:
                        refused[p.id] = d.either(refused.get(p.id, FALSE), d.both(region, p.fires))

        left = self.space.possible
        for rule in sorted((p for p in rules if p.kind == "override"), key=lambda p: p.precedence):
            effective = self.effective(rule, rules)
            here, left = d.both(left, effective), d.less(left, effective)
            decided[rule.id] = here
            if not rule.runners:
                settle(here, (None, True))
                refused[rule.id] = here
                continue
            runner = rule.runners[0]
            if self.book.forced_refusal == "startup":
                stopped = d.both(here, self.against(rules, runner, _STARTUP))
                refuse(stopped, runner, _STARTUP)
                settle(stopped, (runner, True))
                settle(d.less(here, stopped), (runner, False))
            else:
                stopped = d.both(here, self.against(rules, runner, _ANY))
                refuse(stopped, runner, _ANY)
                at_choice = d.both(here, self.against(rules, runner, _CHOICE))
                settle(at_choice, (None, True))
                settle(d.less(stopped, at_choice), (runner, True))
                settle(d.less(here, stopped), (runner, False))
        for runner in self.book.runners[:-1]:
            ruled_out = self.against(rules, runner, _CHOICE)
            here, left = d.less(left, ruled_out), d.both(left, ruled_out)
            by = PREFERRED if runner == self.book.runners[0] else FALLBACK
            decided[by] = d.either(decided.get(by, FALSE), here)
            # Rules of stage `both` that rule it out fire nowhere in `here`.
            stopped = d.both(here, self.against(rules, runner, _STARTUP))
            refuse(stopped, runner, _STARTUP)
            settle(stopped, (runner, True))
            settle(d.less(here, stopped), (runner, False))
        fallback = self.book.runners[-1]
        decided[FALLBACK] = d.either(decided.get(FALLBACK, FALSE), left)
        stopped = d.both(left, self.against(rules, fallback, _ANY))
        refuse(stopped, fallback, _ANY)
        settle(stopped, (fallback, True))
        settle(d.less(left, stopped), (fallback, False))
        return Outcomes(kinds, decided, refused)

    def without(self, *ids: str) -> list[RuleRegion]:
        """All rules but some."""
        return [rule for rule in self.rules.values() if rule.id not in ids]

    def with_runners(self, rule: str, runners: tuple[RunnerName, ...]) -> list[RuleRegion]:
        """All rules, one of them about other runners."""
        return [dataclasses.replace(p, runners=runners) if p.id == rule else p for p in self.rules.values()]


def kinds_differ(space: Space, a: Mapping[Kind, int], b: Mapping[Kind, int]) -> int:
    """Where two books, or variants of one, come to another kind of outcome."""
    d = space.diagrams
    same = d.any_of(d.both(region, b.get(kind, FALSE)) for kind, region in a.items())
    return d.less(space.possible, same)
