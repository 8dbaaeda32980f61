"""Evaluates a rule book on facts: assumptions are put in, rules fire, an outcome is decided.

This is the meaning of null and unknown facts for rules, and serves every analysis; the choice itself uses it
where the rule engine can't be imported. `dodona.oracle.decide.durable` computes the same firings with the
rule engine, and `dodona.oracle.analysis.regions` has the same meaning for all facts at once; tests compare
them with this module.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from dodona.oracle.decide.outcome import Firing, Outcome, decide
from dodona.oracle.language import conditions
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import UNKNOWN, FactValue, Unknown, show_value
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a rule book makes of some facts."""

    facts: Facts
    """The facts that the rules saw: with the book's assumptions in place of unknown ones."""
    assumptions: tuple[str, ...]
    """The assumptions that were put in, as text."""
    firings: tuple[Firing, ...]
    """The rules that fire, in the book's order."""
    outcome: Outcome


def evaluate(book: RuleBook, facts: Facts, *, without: Set[str] = frozenset()) -> Evaluation:
    """Evaluate `book` on facts; absent facts count as unknown. without: ids of rules to leave out."""
    return evaluate_with(lambda known: firings(book, known, without=without), book, facts)


def evaluate_with(fire: Callable[[Facts], tuple[Firing, ...]], book: RuleBook, facts: Facts) -> Evaluation:
    """Evaluate `book` on facts; `fire` gives the rules that fire, in the book's order."""
    facts, assumptions = with_assumptions(book, facts)
    fired = fire(facts)
    return Evaluation(facts, assumptions, fired, decide(book, fired))


def firing(rule: Rule, facts: Facts) -> Firing | None:
    """How a rule fires, or None where it does not; absent facts count as unknown.

    A rule fires surely where its condition (of a require, the negation) is true. Where unknown facts leave
    the condition open, requires and vetoes fire, but not surely, and overrides do not fire.
    """
    value = conditions.evaluate(rule.fires_when, facts)
    if value is True or (value is None and rule.fires_if_unknown):
        return Firing(rule.id, certain=value is True)
    return None


def firings(book: RuleBook, facts: Facts, *, without: Set[str] = frozenset()) -> tuple[Firing, ...]:
    """The rules that fire, in the book's order, on facts as they are: no assumptions are put in.

    without: ids of rules to leave out.
    """
    found = (firing(rule, facts) for rule in book.rules if rule.id not in without)
    return tuple(fired for fired in found if fired is not None)


def with_assumptions(book: RuleBook, facts: Facts) -> tuple[Facts, tuple[str, ...]]:
    """The facts with the book's assumptions in place of unknown ones, and what was assumed, as text."""
    assumed: dict[str, FactValue] = {
        name: value
        for name, value in (book.assume or {}).items()
        if isinstance(facts.get(name, UNKNOWN), Unknown)
    }
    if not assumed:
        return facts, ()
    return {**facts, **assumed}, tuple(
        f"{name} = {show_value(value)} (not known)" for name, value in assumed.items()
    )
