"""Counterfactuals: the least sets of changes to a configuration after which a runner is chosen and starts.

A change only takes something away (see `Change`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dodona.oracle.decide.evaluate import Evaluation, evaluate
from dodona.oracle.decide.outcome import PREFERRED, Firing, Outcome
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.explain.least_changes import LeastChanges
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import UNKNOWN, Unknown, show_value
from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.deployment import Change, Deployment
from dodona.oracle.systems.system import OVERRIDE
from dodona.oracle.systems.verdict_deployment import deployment_of

Because = Literal["model", "machine", "override", "configuration", "preference"]

MAX_NODES: Final = 2_000
"""Sets of changes that are looked at; what lies beyond is cut off, largest sets first."""

_SOURCES: Final[Mapping[str, Because]] = {
    "model": "model",
    "environment": "machine",
    "config": "configuration",
}


@dataclass(frozen=True, slots=True)
class Blocker:
    """A rule that no change of the configuration keeps from ruling the runner out."""

    rule: str
    """Its id, or "preferred" where nothing rules the preferred runner out."""
    feature: str
    because: str
    sources: tuple[Because, ...]
    """Where the facts that it reads come from."""
    facts: tuple[str, ...]
    """Those facts and their values, as text."""


@dataclass(frozen=True, slots=True)
class Forcing:
    """The outcome for another value of the environment variable and the same configuration."""

    variable: str
    value: str | None
    """The value; None: unset."""
    runner: RunnerName | None
    """The runner that it leads to; None where the choice is refused."""
    refusals: tuple[str, ...]
    """The features for which that runner is refused; empty where it starts."""

    def __str__(self) -> str:
        what = f"{self.variable} unset" if self.value is None else f"{self.variable}={self.value}"
        if not self.refusals:
            return f"{what}: {self.runner} starts"
        return f"{what}: refused for {', '.join(self.refusals)}"


@dataclass(frozen=True, slots=True)
class SpecialCase:
    """A fired rule that refines broader ones, considered without those."""

    rule: str
    broader: tuple[str, ...]
    sets: tuple[tuple[Change, ...], ...]
    """Every least set of changes after which it wouldn't fire; empty where nothing helps."""


@dataclass(frozen=True)
class Counterfactuals:
    """Every inclusion-minimal set of changes after which `runner` is chosen and starts: smallest sets first.

    Iterates over the sets, each a tuple of changes; false where there is none. Where the runner is chosen and
    starts as it is, the one set is empty.
    """

    runner: RunnerName
    sets: tuple[tuple[Change, ...], ...]
    blocked_by: tuple[Blocker, ...]
    """Why there is no set; empty where there is one."""
    forcing: tuple[Forcing, ...]
    """What the environment variable would do instead; empty where nothing has to change."""
    special_cases: tuple[SpecialCase, ...] = ()
    complete: bool = True
    """Whether every set is there; false only where there are thousands."""

    def __iter__(self) -> Iterator[tuple[Change, ...]]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)

    @property
    def holds_already(self) -> bool:
        """Whether the runner is chosen and starts without any change."""
        return self.sets == ((),)

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = dataclasses.asdict(self)
        data["holds_already"] = self.holds_already
        return data


def counterfactuals(deployment: Deployment, runner: RunnerName) -> Counterfactuals:
    """What would make `runner` the one that is chosen and starts. Raises ValueError for a runner that the
    book doesn't have.
    """
    book = deployment.book
    if runner not in book.runners:
        raise ValueError(
            f"rule book {book.rulebook} has no runner {runner!r}; it has {', '.join(book.runners)}"
        )
    search = LeastChanges(deployment, runner)
    sets, complete = search.run(MAX_NODES)
    holds = sets == ((),)
    now = evaluate(book, deployment.facts())
    return Counterfactuals(
        runner=runner,
        sets=sets,
        blocked_by=() if sets else _blockers(search, book, runner, deployment, now),
        forcing=() if holds else _forcing(book, runner, deployment, now.facts),
        special_cases=() if holds else tuple(_special_cases(search, book, runner, now.firings)),
        complete=complete,
    )


def counterfactuals_of(
    verdict: Verdict, runner: RunnerName, *, rulebook: RuleBook | None = None
) -> Counterfactuals:
    """The counterfactuals of a verdict's deployment; reads the model's config.json again.

    rulebook: the book that decided, where it isn't one that comes with Dodona. Raises ConfigError, and
    ValueError for a runner that the book doesn't have.
    """
    return counterfactuals(deployment_of(verdict, rulebook), runner)


def _blockers(
    search: LeastChanges,
    book: RuleBook,
    runner: RunnerName,
    deployment: Deployment,
    now: Evaluation,
) -> tuple[Blocker, ...]:
    outcome = now.outcome
    forced_here = outcome.forced and runner in book.by_id[outcome.decided_by].runners
    against = [
        firing.rule
        for firing in now.firings
        if _speaks_against(book, firing.rule, runner, outcome, forced_here)
    ]
    found = [rule for rule in against if search.is_fixed(rule)]
    if not found and runner == book.runners[0]:
        # each of them could be met, but not all together
        found = against
    if not found:
        preferred = book.runners[0]
        why = f"{preferred} is preferred to {runner}, and taking features away doesn't rule it out"
        return (Blocker(PREFERRED, f"runner {preferred}", why, ("preference",), ()),)
    known = deployment.known_facts()
    return tuple(_blocker(book, rule, now.facts, known) for rule in found)


def _speaks_against(book: RuleBook, rule: str, runner: RunnerName, outcome: Outcome, forced: bool) -> bool:
    """forced: an override chooses the runner, so that stage `choice` may not matter."""
    found = book.by_id[rule]
    if found.kind == "override":
        return rule == outcome.decided_by and runner not in found.runners
    moot = forced and found.stage == "choice" and book.forced_refusal == "startup"
    return runner in found.runners and not moot


def _blocker(book: RuleBook, rule: str, facts: Facts, known: Facts) -> Blocker:
    found = book.by_id[rule]
    sources: dict[Because, None] = {}
    shown: list[str] = []
    for name in found.reads:
        sources["override" if name == OVERRIDE else _SOURCES[book.facts[name].source]] = None
        value = known.get(name, UNKNOWN)
        if not isinstance(value, Unknown):
            shown.append(f"{name} = {show_value(value)}")
        elif isinstance(facts.get(name, UNKNOWN), Unknown):
            shown.append(f"{name} is not known")
        else:
            shown.append(f"{name} = {show_value(facts[name])} (assumed)")
    return Blocker(rule, found.show_feature(facts), found.because, tuple(sources), tuple(shown))


def _forcing(book: RuleBook, runner: RunnerName, deployment: Deployment, facts: Facts) -> tuple[Forcing, ...]:
    variable, now = book.environment, deployment.environment.override
    if variable is None:
        return ()
    found: list[Forcing] = []
    if now != runner:
        values = [value for value, means in variable.values.items() if means == runner]
        if not values and variable.otherwise == runner:
            # any value that is not listed; a whole number, in case the variable takes nothing else
            values = [next(text for text in map(str, itertools.count(1)) if text not in variable.values)]
        found += [_forced(book, variable.variable, value, runner, facts) for value in values[:1]]
    if now is not None and now != runner:
        found.append(_forced(book, variable.variable, None, None, facts))
    return tuple(found)


def _forced(
    book: RuleBook, variable: str, value: str | None, means: RunnerName | None, facts: Facts
) -> Forcing:
    then = evaluate(book, {**facts, OVERRIDE: means})
    features = tuple(book.by_id[rule].show_feature(then.facts) for rule in then.outcome.refusals)
    return Forcing(variable, value, then.outcome.runner, features)


def _special_cases(
    search: LeastChanges, book: RuleBook, runner: RunnerName, fired: Collection[Firing]
) -> Iterator[SpecialCase]:
    ids = {firing.rule for firing in fired}
    for firing in fired:
        rule = book.by_id[firing.rule]
        broader = book.refined_by(rule.id) & ids
        if broader and runner in rule.runners:
            named = tuple(r.id for r in book.rules if r.id in broader)
            yield SpecialCase(rule.id, named, search.to_stop(rule.id))
