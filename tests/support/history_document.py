"""The tables of docs/history.md, by `rules diff`: `python -m tests.support.history_document` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from dodona.oracle.analysis.diff import diff_sources
from dodona.oracle.analysis.diff_text import as_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "history.md"
FOLDER = DOCUMENT.parent / "history"

_BLOCK = re.compile(r"<!-- diff: (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def render(text: str) -> str:
    """The document with its tables made anew."""
    return _BLOCK.sub(lambda match: "\n".join(_table(match[1], match[2])), text)


def edits(text: str) -> list[tuple[str, str]]:
    """Names of the books before and after each edit that the document shows."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(text)]


def _table(before: str, after: str) -> list[str]:
    (found,) = diff_sources(str(FOLDER / f"{before}.yaml"), str(FOLDER / f"{after}.yaml")).books
    _, *lines = as_markdown(found)
    while lines and not lines[-1]:
        lines.pop()
    return [f"<!-- diff: {before} {after} -->", *lines, "", "<!-- end -->"]


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
