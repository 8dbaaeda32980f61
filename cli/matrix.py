"""`dodona matrix`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer

from dodona.cli.common import FAILED, RuleBookName, reporting
from dodona.cli.output import say
from dodona.oracle.errors import ConfigError


class Format(enum.StrEnum):
    """How a matrix is written."""

    text = "text"
    markdown = "markdown"
    html = "html"
    json = "json"


def matrix(
    rulebook: RuleBookName = "dodona",
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.text,
    output: Annotated[
        Path | None, typer.Option(help="The file to write, in place of stdout.", show_default=False)
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Write nothing; exit with 1 where this file is out of date.", show_default=False),
    ] = None,
) -> None:
    """Show which runner serves each architecture with each feature."""
    with reporting():
        if check is not None and output is not None:
            raise ConfigError("--check and --output: choose one of them")
        if format is Format.text:
            if check is not None or output is not None:
                raise ConfigError("--format text is for a terminal; give --format markdown, html or json")
            _print(rulebook)
            return
        text = _written(rulebook, format)
        if check is not None:
            if not _is_current(check, text):
                command = f"dodona matrix --rulebook {rulebook} --format {format.value} --output {check}"
                say(f"dodona: {check} is out of date; write it anew: {command}", err=True)
                raise typer.Exit(FAILED)
        elif output is not None:
            try:
                output.write_text(text, encoding="utf-8", newline="\n")
            except OSError as error:
                raise ConfigError(f"--output {output}: {error.strerror}") from None
        else:
            say(text, nl=False)


def _written(rulebook: str, format: Format) -> str:
    from dodona.oracle.analysis.matrix import make_matrix
    from dodona.oracle.analysis.matrix_formats import matrix_html, matrix_markdown
    from dodona.oracle.systems.books import load_rulebook

    made = make_matrix(load_rulebook(rulebook))
    if format is Format.json:
        return json.dumps(made.to_mapping(), indent=1, ensure_ascii=False) + "\n"
    return matrix_markdown(made) if format is Format.markdown else matrix_html(made)


def _print(rulebook: str) -> None:
    from dodona.oracle.analysis.matrix import make_matrix
    from dodona.oracle.analysis.matrix_formats import matrix_table
    from dodona.oracle.explain.table import make_console
    from dodona.oracle.systems.books import load_rulebook

    make_console().print(matrix_table(make_matrix(load_rulebook(rulebook))))


def _is_current(file: Path, text: str) -> bool:
    try:
        return file.read_bytes() == text.encode()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"--check {file}: {error.strerror}") from None
