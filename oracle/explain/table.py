"""A verdict as a table for a terminal (rich)."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dodona.oracle.decide.verdict import Reason, Verdict
from dodona.oracle.explain.text import explain
from dodona.oracle.printable import printable

PLAIN_WIDTH = 120
"""Width of output that doesn't go to a terminal."""


def make_console(*, stderr: bool = False) -> Console:
    """A console that is as wide as the terminal, and of a fixed width where there is none."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def words(text: object, style: str = "") -> Text:
    """A cell's text, with control characters as escapes."""
    return Text(printable(text), style)


def verdict_table(verdict: Verdict) -> RenderableType:
    """The verdict with its headline, a row for each reason (refusals first), and who evaluated it."""
    headline = explain(verdict).splitlines()[0]
    style = "bold red" if verdict.refusals else "bold green"
    parts: list[RenderableType] = [words(headline, style)]
    if verdict.unread:
        rows = "\n".join(f"  - {text}" for text in verdict.unread)
        parts.append(words(f"Not understood, and it may be otherwise for that:\n{rows}", "bold yellow"))
    if verdict.reasons:
        parts.append(_reasons(verdict))
    else:
        parts.append(words("No rule fired."))
    if verdict.consequences:
        parts.append(_consequences(verdict))
    if verdict.assumptions:
        parts.append(
            words("Assumed, since it isn't known: " + "; ".join(verdict.assumptions), style="yellow")
        )
    book = verdict.rulebook
    engine = "durable-rules" if verdict.evaluated_by == "durable_rules" else "the reference evaluator"
    parts.append(
        words(f"Rule book {book.name} ({book.content_hash[:12]}), evaluated by {engine}.", style="dim")
    )
    return Group(*parts)


def _reasons(verdict: Verdict) -> Table:
    table = Table(show_lines=True, expand=False)
    table.add_column("Rule", no_wrap=True)
    table.add_column("What is asked for, or is here", overflow="fold")
    table.add_column("Why it decides", overflow="fold")
    table.add_column("Effect", no_wrap=True)
    refused = {reason.rule for reason in verdict.refusals}
    for reason in sorted(verdict.reasons, key=lambda reason: reason.rule not in refused):
        why = words(reason.because)
        if reason.unknown:
            why.append(f"\nNot known: {', '.join(reason.unknown)}", style="yellow")
        for ref in reason.refs:
            why.append(f"\n{printable(ref)}", style="dim")
        table.add_row(
            words(reason.rule),
            words(reason.feature),
            why,
            words(_effect(reason, verdict), style="red" if reason.rule in refused else ""),
        )
    return table


_STYLES = {"info": "", "warning": "yellow", "error": "bold red"}


def _consequences(verdict: Verdict) -> Table:
    table = Table(show_lines=True, expand=False)
    table.add_column("Consequence", no_wrap=True)
    table.add_column(f"With {verdict.runner}", overflow="fold")
    table.add_column("What it means, and what mends it", overflow="fold")
    table.add_column("Severity", no_wrap=True)
    for found in verdict.consequences:
        what = words(found.because)
        if found.mend is not None:
            what.append(f"\n{printable(found.mend)}")
        for ref in found.refs:
            what.append(f"\n{printable(ref)}", style="dim")
        table.add_row(
            words(found.consequence),
            words(found.feature),
            what,
            words(found.severity, style=_STYLES[found.severity]),
        )
    return table


def _effect(reason: Reason, verdict: Verdict) -> str:
    runners = " and ".join(reason.runners) or "no runner"
    if reason.kind == "override":
        return f"forces {runners}" if reason.rule == verdict.decided_by else f"for {runners}, outranked"
    return f"rules out {runners}"
