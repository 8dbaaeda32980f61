"""`dodona rules list`."""

from __future__ import annotations

import json

import typer

from dodona.oracle.rulebook import load_rulebook


def print_rules(rulebook: str, *, as_json: bool) -> None:
    """Print the rules of a book as a table, or as one JSON object."""
    book = load_rulebook(rulebook)
    if as_json:
        rules = [rule.model_dump(mode="json", exclude={"examples"}) for rule in book.rules]
        typer.echo(
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
    from rich.text import Text

    from dodona.oracle.render import make_console

    table = Table(title=f"Rule book {book.rulebook}: {book.description}", show_lines=True)
    table.add_column("Rule", no_wrap=True)
    table.add_column("Kind", no_wrap=True)
    table.add_column("Runners", no_wrap=True)
    table.add_column("Since", no_wrap=True)
    table.add_column("Feature and reason")
    for rule in book.rules:
        about = Text(rule.feature, style="bold")
        about.append(f"\n{rule.because}", style="not bold")
        table.add_row(Text(rule.id), rule.kind, ", ".join(rule.runners), str(rule.since), about)
    make_console().print(table)
