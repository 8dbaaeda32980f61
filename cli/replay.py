"""`dodona rules replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dodona.cli.common import FAILED, reporting
from dodona.cli.output import say


def rules_replay(
    rulebook: Annotated[str, typer.Argument(metavar="BOOK", help="A rule book's name, or the path of one.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Recorded cases: .jsonl, .jsonl.gz.")
    ],
    show: Annotated[int, typer.Option(min=0, help="Most disagreements to print.")] = 10,
) -> None:
    """Compare a vLLM rule book with recorded answers of vLLM; exits with 1 where any differs."""
    with reporting():
        if not print_replay(rulebook, files, show=show):
            raise typer.Exit(FAILED)


def print_replay(rulebook: str, files: Sequence[Path], *, show: int) -> bool:
    """Print how many cases agree, and the first disagreements. Returns whether all agree."""
    from dodona.oracle.analysis.replay import replay
    from dodona.oracle.systems.books import load_rulebook

    result = replay(load_rulebook(rulebook), files, keep=show)
    for disagreement in result.disagreements:
        say(str(disagreement))
    left = result.total - result.agreed - len(result.disagreements)
    if left:
        say(f"... and {left} more")
    say(f"{result.agreed} of {result.total} agree")
    return result.agreed == result.total
