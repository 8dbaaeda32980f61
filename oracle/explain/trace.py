"""The full trace of a decision: every rule of the book, whether it fired, and the facts that it read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.decide.outcome import Outcome
from dodona.oracle.language import conditions
from dodona.oracle.language.facts import UNKNOWN, FactValue, Unknown, show_value
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.deployment import Deployment


@dataclass(frozen=True, slots=True)
class FactRead:
    """A fact that a rule compares. `assumed`: the fact is unknown, and the book assumes this value."""

    name: str
    value: FactValue
    assumed: bool

    def __str__(self) -> str:
        if isinstance(self.value, Unknown):
            return f"{self.name} is not known"
        return f"{self.name} = {show_value(self.value)}" + (" (assumed)" if self.assumed else "")


@dataclass(frozen=True, slots=True)
class Step:
    """One rule, and what it did in a decision."""

    rule: Rule
    feature: str
    fired: bool
    certain: bool
    """Whether it surely fires or surely doesn't; false where that depends on an unknown fact."""
    decisive: bool
    """Whether the outcome depends on it: it chose the runner, ruled out a preferred one, or refused the
    chosen one."""
    effect: str
    """What it did, in a few words; empty where it didn't fire."""
    facts: tuple[FactRead, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values; an unknown fact has no value."""
        facts = [
            {"fact": read.name, "assumed": read.assumed}
            | ({"known": False} if isinstance(read.value, Unknown) else {"known": True, "value": read.value})
            for read in self.facts
        ]
        return {
            "rule": self.rule.id,
            "kind": self.rule.kind,
            "stage": self.rule.stage,
            "runners": list(self.rule.runners),
            "feature": self.feature,
            "fired": self.fired,
            "certain": self.certain,
            "decisive": self.decisive,
            "effect": self.effect,
            "facts": facts,
        }


def trace(deployment: Deployment) -> tuple[Step, ...]:
    """Every rule of the deployment's book, in the book's order, by the reference evaluator."""
    book, known, facts = deployment.book, deployment.known_facts(), deployment.facts()
    found = evaluate(book, facts)
    ids = {firing.rule for firing in found.firings}
    steps: list[Step] = []
    for rule in book.rules:
        reads = tuple(
            FactRead(
                name,
                facts.get(name, UNKNOWN),
                isinstance(known.get(name, UNKNOWN), Unknown)
                and not isinstance(facts.get(name, UNKNOWN), Unknown),
            )
            for name in rule.reads
        )
        effect, decisive = _effect(book, rule, found.outcome) if rule.id in ids else ("", False)
        steps.append(
            Step(
                rule=rule,
                feature=rule.show_feature(facts),
                fired=rule.id in ids,
                certain=conditions.evaluate(rule.when, facts) is not None,
                decisive=decisive,
                effect=effect,
                facts=reads,
            )
        )
    return tuple(steps)


def _effect(book: RuleBook, rule: Rule, outcome: Outcome) -> tuple[str, bool]:
    """What a fired rule did, and whether the outcome depends on it."""
    if rule.kind == "override":
        chosen = rule.runners[0] if rule.runners else "no runner"
        decides = rule.id == outcome.decided_by
        return (f"chooses {chosen}" if decides else f"for {chosen}, outranked"), decides
    runners = ", ".join(rule.runners)
    if rule.id in outcome.refusals:
        return f"refuses {runners}", True
    if outcome.forced:
        return f"against {runners}, moot", False
    if rule.stage == "startup":
        return f"would refuse {runners}", False
    # the choice passed over the runners that are preferred to the one it came to
    passed_over = book.runners[: book.runners.index(outcome.runner)] if outcome.runner else ()
    return f"rules out {runners}", any(runner in rule.runners for runner in passed_over)
