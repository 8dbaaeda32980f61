"""`dodona rules replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from dodona.oracle.analysis.replay import replay
from dodona.oracle.systems.books import load_rulebook


def print_replay(rulebook: str, files: Sequence[Path], *, show: int) -> bool:
    """Print how many cases agree, and the first disagreements. Returns whether all agree."""
    result = replay(load_rulebook(rulebook), files, keep=show)
    for disagreement in result.disagreements:
        typer.echo(str(disagreement))
    left = result.total - result.agreed - len(result.disagreements)
    if left:
        typer.echo(f"... and {left} more")
    typer.echo(f"{result.agreed} of {result.total} agree")
    return result.agreed == result.total
