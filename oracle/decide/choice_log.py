"""The line that the described system logs by itself about its choice of a runner.

Many choices are logged by no line at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook


def choice_log(book: RuleBook, facts: Facts, fired: Sequence[Rule], *, forced_by: str | None) -> str | None:
    """The line that is logged for a choice; None where nothing is logged.

    fired: the rules that fire, in the book's order. forced_by: the id of the override that decided; its line
    is logged.

    Without an override, the requires and vetoes count that rule out the preferred runner at the choice. If
    requires are among them, the first one's line is logged, or nothing where one of them has no line. If only
    vetoes are, the book's `fallback_log` is logged with the features of all of them.
    """
    if forced_by is not None:
        return book.by_id[forced_by].show_log(facts)
    against = [
        r for r in fired if r.kind != "override" and book.runners[0] in r.runners and r.stage != "startup"
    ]
    requires = [rule for rule in against if rule.kind == "require"]
    if requires:
        lines = [rule.show_log(facts) for rule in requires]
        return None if None in lines else lines[0]
    if not against or book.fallback_log is None:
        return None
    features = ", ".join(rule.show_feature(facts) for rule in against)
    return book.fallback_log.replace("{features}", features)
