"""The outcome of a rule book: which runner the rules that fire lead to, and what refuses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook

PREFERRED: Final = "preferred"
FALLBACK: Final = "fallback"


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule that fires: surely, or only because a fact that it compares is unknown."""

    rule: str
    """The rule's id."""
    certain: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a book decides about a set of firings; rules are given by their ids."""

    runner: RunnerName | None
    """The runner that serves; None where the choice is refused."""
    forced: bool
    """An override decided."""
    decided_by: str
    """The id of that override, or "preferred", or "fallback"."""
    refusals: tuple[str, ...]
    """The rules for which the runner does not start, or the choice is refused."""

    @property
    def kind(self) -> tuple[RunnerName | None, bool]:
        """The runner, and whether its startup is refused: what users feel of an outcome."""
        return self.runner, bool(self.refusals)


def decide(book: RuleBook, fired: Sequence[Firing]) -> Outcome:
    """Fold firings into an outcome. Their order sets only the order of the refusals.

    The override of lowest precedence decides. If a require or veto rules out the override's runner, the
    book's `forced_refusal` determines whether the choice is refused (runner None) or the runner does not
    start. An override without a runner refuses the choice itself. Without an override, the first runner by
    preference that no require or veto rules out; else the last, with its refusals.
    """
    rules = [book.by_id[firing.rule] for firing in fired]

    def against(runner: RunnerName, *stages: str) -> tuple[str, ...]:
        return tuple(
            r.id for r in rules if r.kind != "override" and runner in r.runners and r.stage in stages
        )

    overrides = [
        rule
        for rule in rules
        if rule.kind == "override"
        and not (rule.unless_vetoed is not None and against(rule.unless_vetoed, "choice", "both"))
    ]
    if overrides:
        override = min(overrides, key=lambda rule: rule.precedence or 0)
        if not override.runners:
            return Outcome(None, True, override.id, (override.id,))
        runner = override.runners[0]
        if book.forced_refusal == "startup":
            return Outcome(runner, True, override.id, against(runner, "startup", "both"))
        refused = bool(against(runner, "choice", "both"))
        return Outcome(
            None if refused else runner, True, override.id, against(runner, "choice", "startup", "both")
        )
    for runner in book.runners[:-1]:
        if not against(runner, "choice", "both"):
            by = PREFERRED if runner == book.runners[0] else FALLBACK
            return Outcome(runner, False, by, against(runner, "startup"))
    fallback = book.runners[-1]
    return Outcome(fallback, False, FALLBACK, against(fallback, "choice", "startup", "both"))
