"""`dodona rules list`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from dodona.cli.common import AsJson, RuleBookName, reporting
from dodona.cli.output import say
from dodona.oracle.errors import did_you_mean

if TYPE_CHECKING:
    from dodona.oracle.language.rulebook import RuleBook

_MOST_SEARCHES: Final = 20


def rules_list(rulebook: RuleBookName = "dodona", json_: AsJson = False) -> None:
    """List the rules of a rule book."""
    with reporting():
        print_rules(rulebook, as_json=json_)


def unknown_architectures(book: RuleBook) -> list[str]:
    """A warning for each architecture in a rule that no known model has; the first with the nearest that one
    has: a search takes a hundredth of a second."""
    from dodona.oracle.language.conditions import comparisons
    from dodona.oracle.models.known_models import known_architectures

    found: list[str] = []
    for rule in book.rules:
        for comparison in comparisons(rule.when):
            if comparison.fact != "model_config.architectures" or not isinstance(comparison.value, tuple):
                continue
            for name in map(str, comparison.value):
                if name not in known_architectures():
                    known = known_architectures() if len(found) < _MOST_SEARCHES else ()
                    hint = did_you_mean(name, known)
                    found.append(
                        f"rule {rule.id}: no known model has the architecture {name!r}; {hint}".rstrip("; ")
                    )
    return found


def print_rules(rulebook: str, *, as_json: bool) -> None:
    """Print the rules of a book as a table, or as one JSON object."""
    from dodona.oracle.systems.books import load_rulebook

    book = load_rulebook(rulebook)
    for warning in unknown_architectures(book):
        say(f"dodona: warning: {warning}", err=True)
    if as_json:
        rules = [rule.model_dump(mode="json", exclude={"examples"}) for rule in book.rules]
        say(
            json.dumps(
                {
                    "rulebook": book.rulebook,
                    "content_hash": book.content_hash,
                    "runners": book.runners,
                    "rules": rules,
                }
            )
        )
        return
    from rich.table import Table

    from dodona.oracle.explain.table import make_console, words

    table = Table(title=f"Rule book {book.rulebook}: {book.description}", show_lines=True)
    table.add_column("Rule", no_wrap=True)
    table.add_column("Kind", no_wrap=True)
    table.add_column("Runners", no_wrap=True)
    table.add_column("Since", no_wrap=True)
    table.add_column("Feature and reason")
    for rule in book.rules:
        about = words(rule.feature, style="bold")
        about.append(f"\n{rule.because}", style="not bold")
        table.add_row(words(rule.id), rule.kind, ", ".join(rule.runners), str(rule.since), about)
    make_console().print(table)
