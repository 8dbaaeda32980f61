"""The reference evaluator: what a rule book means, in the fewest words.

It serves all analysis, and the choice itself where the rule engine can't be imported.
`dodona.oracle.decide.durable` gives the same firings through the rule engine, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from dodona.oracle.language.conditions import Facts, evaluate
from dodona.oracle.language.rulebook import RuleBook


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule that fires: surely, or only because a fact that it needs isn't known."""

    rule: str
    certain: bool


def firings(book: RuleBook, facts: Facts, *, without: Set[str] = frozenset()) -> tuple[Firing, ...]:
    """The rules that fire, in the book's order; `without` names rules to leave out.

    A require or veto fires when it surely fires or when unknown facts leave it open. An override fires only
    surely: what isn't known can't decide by itself.
    """
    fired: list[Firing] = []
    for rule in book.rules:
        if rule.id in without:
            continue
        value = evaluate(rule.fires_when, facts)
        if value is True or (value is None and rule.kind != "override"):
            fired.append(Firing(rule.id, certain=value is True))
    return tuple(fired)
