"""The search for the least sets of changes that lead to a runner.

The search begins with the empty set and adds one change at a time. While a set does not lead to the runner,
some rule has to fire that does not, or the other way round; only changes that this rule depends on can do
that, so only those are added. Where there are none, the branch ends. Sets are visited by size and each set
once, so that no subset of a set that is found leads to the runner.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from dodona.oracle.decide.evaluate import firing
from dodona.oracle.decide.outcome import Firing, Outcome, decide
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.rule import Rule, RunnerName
from dodona.oracle.systems.deployment import Change, Deployment

MAX_LOOKAHEAD: Final = 8
"""A rule that depends on more changes than this is not examined: it counts as one that may turn."""


class LeastChanges:
    """Sets of changes to one deployment, as bits of an int: bit i is the i-th of `changes`."""

    def __init__(self, deployment: Deployment, runner: RunnerName) -> None:
        self.changes = deployment.changes()
        self._deployment = deployment
        self._book = deployment.book
        self._runner = runner
        self._rules = self._book.rules
        self._excludes = [
            sum(1 << j for j, other in enumerate(self.changes) if j != i and change.clashes(other))
            for i, change in enumerate(self.changes)
        ]
        self._depends = {rule.id: self._support(rule) for rule in self._rules}
        self._facts: dict[int, Facts] = {}
        self._fires: dict[tuple[str, int], Firing | None] = {}
        self._outcomes: dict[tuple[Firing, ...], Outcome] = {}
        choosing = [r for r in self._rules if r.kind == "override" and runner in r.runners]
        self._may_be_forced = any(self._depends[r.id] or self._firing(r, 0) is not None for r in choosing)

    def run(self, max_nodes: int) -> tuple[tuple[tuple[Change, ...], ...], bool]:
        """Every least set, smallest first, and whether that is all: `max_nodes` sets are looked at."""
        found: list[int] = []
        level = [(0, 0)]
        seen = 0
        while level:
            following: list[tuple[int, int]] = []
            for made, barred in level:
                if any(made & least == least for least in found):
                    continue
                seen += 1
                if seen > max_nodes:
                    return self._named(found), False
                outcome = self._outcome(made)
                if outcome.runner == self._runner and not outcome.refusals:
                    found.append(made)
                    continue
                ways = self._ways_on(made, barred, outcome)
                taken = barred
                for i in _bits(ways):
                    following.append((made | 1 << i, taken | self._excludes[i]))
                    taken |= 1 << i
            level = following
        return self._named(found), True

    def to_stop(self, rule: str) -> tuple[tuple[Change, ...], ...]:
        """Every least set of changes after which a rule that fires no longer does, whatever else decides."""
        found: list[int] = []
        ways = _bits(self._depends[rule])
        for size in range(1, min(len(ways), MAX_LOOKAHEAD) + 1):
            for chosen in itertools.combinations(ways, size):
                made = sum(1 << i for i in chosen)
                if self._clash(made) or any(made & least == least for least in found):
                    continue
                if not self._fires_at(self._book.by_id[rule], made):
                    found.append(made)
        return self._named(found)

    def is_fixed(self, rule: str) -> bool:
        """Whether no changes make a rule fire that does not, or the other way round."""
        return not self._can_turn(self._book.by_id[rule], 0, 0)

    def _named(self, sets: Iterable[int]) -> tuple[tuple[Change, ...], ...]:
        ordered = sorted(sets, key=lambda made: (made.bit_count(), tuple(_bits(made))))
        return tuple(tuple(self.changes[i] for i in _bits(made)) for made in ordered)

    def _support(self, rule: Rule) -> int:
        return sum(
            1 << i
            for i, change in enumerate(self.changes)
            if any(self._deployment.affects(change, fact) for fact in rule.reads)
        )

    def _firing(self, rule: Rule, made: int) -> Firing | None:
        """How a rule fires after changes, or None where it does not."""
        key = (rule.id, made & self._depends[rule.id])
        if key not in self._fires:
            if key[1] not in self._facts:
                self._facts[key[1]] = self._deployment.facts([self.changes[i] for i in _bits(key[1])])
            self._fires[key] = firing(rule, self._facts[key[1]])
        return self._fires[key]

    def _outcome(self, made: int) -> Outcome:
        states = (self._firing(rule, made) for rule in self._rules)
        fired = tuple(state for state in states if state is not None)
        if fired not in self._outcomes:
            self._outcomes[fired] = decide(self._book, fired)
        return self._outcomes[fired]

    def _ways_on(self, made: int, barred: int, outcome: Outcome) -> int:
        """Changes of which every further set that leads to the runner has at least one; none: no set does."""
        must_stop = [rule for rule in self._rules if self._must_not_fire(rule) and self._fires_at(rule, made)]
        if must_stop:
            open_ways: list[int] = []
            for rule in must_stop:
                if not self._can_turn(rule, made, barred):
                    return 0
                open_ways.append(self._depends[rule.id] & ~made & ~barred)
            return min(open_ways, key=int.bit_count)
        ways = 0
        for rule in self._rules:
            # what decides between runners: overrides, and what speaks for or against one at the choice
            if (rule.kind == "override" or rule.stage != "startup") and self._can_turn(rule, made, barred):
                ways |= self._depends[rule.id]
        return ways & ~made & ~barred

    def _fires_at(self, rule: Rule, made: int) -> bool:
        return self._firing(rule, made) is not None

    def _must_not_fire(self, rule: Rule) -> bool:
        """Whether the runner can't be chosen and start, however else, while a rule fires."""
        if rule.kind == "override" or self._runner not in rule.runners:
            return False
        if rule.stage != "choice":
            return True
        return self._book.forced_refusal == "choice" or not self._may_be_forced

    def _can_turn(self, rule: Rule, made: int, barred: int) -> bool:
        """Whether some further changes make a rule that fires stop, or one that doesn't begin."""
        ways = self._depends[rule.id] & ~made & ~barred
        if ways.bit_count() > MAX_LOOKAHEAD:
            return True
        now = self._fires_at(rule, made)
        subset = ways
        while subset:
            if not self._clash(subset) and self._fires_at(rule, made | subset) is not now:
                return True
            subset = (subset - 1) & ways
        return False

    def _clash(self, made: int) -> bool:
        return any(self._excludes[i] & made for i in _bits(made))


def _bits(made: int) -> list[int]:
    found = []
    while made:
        low = made & -made
        found.append(low.bit_length() - 1)
        made ^= low
    return found
