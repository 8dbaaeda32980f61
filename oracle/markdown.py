"""Markdown: text that means itself, and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence


def escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is, also in a cell of a table."""
    shown = html.escape(text, quote=False)
    for character in "\\|`*_[]":
        shown = shown.replace(character, f"\\{character}")
    return shown.replace("\n", " ")


def cell(text: str) -> str:
    """Markdown on one line that may stand in a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, centred: bool = False) -> Iterator[str]:
    """The lines of a table of cells. centred: all columns but the first are."""
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join(["---", *([":-:" if centred else "---"] * (len(head) - 1))]) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
