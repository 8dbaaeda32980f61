"""Writes the output that docs/analysis.md shows: ``python -m tests.support.analysis_doc``."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from dodona.cli.app import app

TARGET = Path(__file__).parents[2] / "docs" / "analysis.md"

BLOCK = re.compile(r"(?<=```console\n)\$ dodona ([^\n]+)\n.*?(?=\n```)", re.DOTALL)


def refreshed(text: str) -> str:
    """The document with each command's output as it is now; its one rule book is the file fast.yaml."""
    (book,) = re.findall(r"```yaml\n(rulebook:.*?)```", text, flags=re.DOTALL)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("fast.yaml").write_text(book, encoding="utf-8")
        return BLOCK.sub(lambda block: f"$ dodona {block[1]}\n{_output(block[1])}", text)


def _output(command: str) -> str:
    return CliRunner().invoke(app, command.split()).output.rstrip("\n")


if __name__ == "__main__":
    TARGET.write_text(refreshed(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
