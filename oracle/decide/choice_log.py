"""What the system that a book describes logs about its choice by itself: often nothing, where one would want
to know.
"""

from __future__ import annotations

from collections.abc import Sequence

from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.rulebook import Rule, RuleBook


def choice_log(book: RuleBook, facts: Facts, fired: Sequence[Rule], *, forced_by: str | None) -> str | None:
    """The line that is logged for a choice; None where it is made in silence.

    forced_by: the id of the override that decided. Otherwise, of the requires that rule the preferred runner
    out, one that is silent silences the others; vetoes are told together, where no require fired.
    """
    if forced_by is not None:
        return book.by_id[forced_by].show_log(facts)
    against = [
        r for r in fired if r.kind != "override" and book.runners[0] in r.runners and r.stage != "startup"
    ]
    requires = [rule for rule in against if rule.kind == "require"]
    if requires:
        told = [rule.show_log(facts) for rule in requires]
        return told[0] if None not in told else None
    if not against or book.fallback_log is None:
        return None
    features = ", ".join(rule.show_feature(facts) for rule in against)
    return book.fallback_log.replace("{features}", features)
