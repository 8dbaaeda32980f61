"""A matrix for a terminal, as Markdown, and as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dodona.oracle.analysis.matrix import Cell, Column, Matrix, Note
from dodona.oracle.markdown import escaped, table
from dodona.oracle.systems.registry import system_of

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFUSED = "✗"


def cell_text(matrix: Matrix, cell: Cell) -> str:
    """The runner in capitals; a cross where it is refused, with the runner that doesn't start where the book
    is another system's. Of Dodona's own, only the last runner is ever refused.
    """
    if cell.starts and cell.runner is not None:
        return cell.runner.upper()
    if cell.runner is None or system_of(matrix.system).builds_runners:
        return _REFUSED
    return f"{cell.runner.upper()} {_REFUSED}"


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"{chr(ord('A') + index // 26 - 1)}{_letter(index % 26)}"


def _heading(column: Column) -> str:
    more = len(column.models) - 1
    first = column.models[0]
    name = first.architecture if first.note == "dense" else first.name
    return name + (f" + {more} more" if more else "")


def _legend(matrix: Matrix) -> str:
    if system_of(matrix.system).builds_runners:
        return f"{_REFUSED}: no runner serves it; it is refused by name before anything loads."
    refused = ", ".join(f"{runner.upper()} {_REFUSED}" for runner in sorted(matrix.runners))
    return f"{refused}: chosen, and doesn't start. {_REFUSED}: the choice itself fails."


def _rank(matrix: Matrix, cell: Cell) -> str:
    """What colours a cell: `preferred` (the book's first runner), `other`, or `refused`."""
    if not cell.starts or cell.runner is None:
        return "refused"
    return "preferred" if cell.runner == matrix.runners[0] else "other"


_INTRO = (
    "One NVIDIA GPU (Hopper) with Triton, and nothing forced. One feature at a time, and architectures with "
    "what their family's default config.json says; those that come out alike share a column."
)


_NOTE_HEADS = ("Consequence", "Severity", "With", "What is affected", "Reported where")


def _note_cells(note: Note) -> tuple[str, ...]:
    runners = ", ".join(runner.upper() for runner in note.runners)
    return (note.consequence, note.severity, runners, note.feature, note.where)


# --- terminal -----------------------------------------------------------------------------------------------


def matrix_table(matrix: Matrix) -> RenderableType:
    """For a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    styles = {"preferred": "bold green", "other": "yellow", "refused": "red"}
    table = Table(title=f"Rule book {matrix.rulebook}: which runner serves what", show_lines=False)
    table.add_column("Feature", overflow="fold")
    for index, _ in enumerate(matrix.columns):
        table.add_column(_letter(index), justify="center", no_wrap=True)
    for row, feature in enumerate(matrix.features):
        cells = [column.cells[row] for column in matrix.columns]
        texts = [Text(cell_text(matrix, cell), style=styles[_rank(matrix, cell)]) for cell in cells]
        table.add_row(Text(feature.label), *texts)
    columns = Table(title="Architectures", show_lines=True)
    columns.add_column("", no_wrap=True)
    columns.add_column("Architecture", overflow="fold")
    columns.add_column("What rules out a runner by itself", overflow="fold")
    for index, column in enumerate(matrix.columns):
        for model in column.models:
            columns.add_row(_letter(index), Text(model.name), Text(", ".join(model.rules) or "–"))
    parts: list[RenderableType] = [table, Text(_legend(matrix), style="dim"), columns]
    if matrix.notes:
        notes = Table(title="Consequences", show_lines=True)
        for head in _NOTE_HEADS:
            notes.add_column(head, overflow="fold")
        for note in matrix.notes:
            notes.add_row(*(Text(cell) for cell in _note_cells(note)))
        parts.append(notes)
    return Group(*parts)


# --- Markdown -----------------------------------------------------------------------------------------------


def matrix_markdown(matrix: Matrix) -> str:
    """A Markdown document; ends with a line break."""
    command = f"dodona matrix --rulebook {matrix.rulebook} --format markdown"
    head = ["Feature", *(f"{_letter(i)}: {escaped(_heading(c))}" for i, c in enumerate(matrix.columns))]
    lines = [
        "# Which runner serves what",
        "",
        f"<!-- Made by `{command} --output FILE`: don't edit. -->",
        "",
        f"Rule book `{matrix.rulebook}`. {_INTRO}",
        "",
        _legend(matrix),
        "",
        *table(head, (_feature_cells(matrix, row) for row in range(len(matrix.features))), centred=True),
        "",
        "## Architectures",
        "",
        *table(("column", "architecture", "what rules out a runner by itself"), _model_cells(matrix)),
    ]
    if matrix.notes:
        lines += ["", "## Consequences", "", "What a runner that was chosen costs, changes or ignores.", ""]
        rows = (_note_cells(note) for note in matrix.notes)
        lines += table(
            [head.lower() for head in _NOTE_HEADS],
            ([f"`{name}`", *map(escaped, others)] for name, *others in rows),
        )
    return "\n".join(lines) + "\n"


def _feature_cells(matrix: Matrix, row: int) -> list[str]:
    feature = matrix.features[row]
    rules = ", ".join(f"`{rule}`" for rule in feature.rules)
    name = escaped(feature.label) + (f" ({rules})" if rules else "")
    return [name, *(cell_text(matrix, column.cells[row]) for column in matrix.columns)]


def _model_cells(matrix: Matrix) -> Iterator[list[str]]:
    for index, column in enumerate(matrix.columns):
        for model in column.models:
            rules = ", ".join(f"`{rule}`" for rule in model.rules) or "–"
            yield [_letter(index), escaped(model.name), rules]


# --- HTML ---------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0 2rem; width: 100%; }
th, td { border: 1px solid #d0d7de; padding: .35rem .6rem; text-align: left; vertical-align: top; }
thead th { background: #f6f8fa; position: sticky; top: 0; }
td.cell { text-align: center; font-weight: 600; white-space: nowrap; }
.preferred { background: #dafbe1; } .other { background: #fff8c5; } .refused { background: #ffebe9; }
small, code { color: #57606a; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } th, td { border-color: #30363d; }
  thead th { background: #161b22; } small, code { color: #8b949e; }
  .preferred { background: #12361f; } .other { background: #3b2f00; }
  .refused { background: #4a1a1a; }
}
"""


def matrix_html(matrix: Matrix) -> str:
    """An HTML page; ends with a line break."""
    title = html.escape(f"Which runner serves what: rule book {matrix.rulebook}")
    heads = "".join(
        f'<th scope="col">{_letter(i)}<br><small>{html.escape(_heading(c))}</small></th>'
        for i, c in enumerate(matrix.columns)
    )
    rows: list[str] = []
    for row, feature in enumerate(matrix.features):
        rules = ", ".join(map(html.escape, feature.rules))
        rule = f"<br><code>{rules}</code>" if rules else ""
        cells = "".join(_html_cell(matrix, column.cells[row]) for column in matrix.columns)
        rows.append(f'<tr><th scope="row">{html.escape(feature.label)}{rule}</th>{cells}</tr>')
    models = [
        f'<tr><td>{_letter(i)}</td><th scope="row">{html.escape(model.name)}</th>'
        f"<td>{html.escape(', '.join(model.rules) or '–')}</td></tr>"
        for i, column in enumerate(matrix.columns)
        for model in column.models
    ]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{html.escape(matrix.description)} {html.escape(_INTRO)}</p>",
        f"<p>{html.escape(_legend(matrix))}</p>",
        f'<table><thead><tr><th scope="col">Feature</th>{heads}</tr></thead><tbody>',
        *rows,
        "</tbody></table><h2>Architectures</h2>",
        '<table><thead><tr><th scope="col">Column</th><th scope="col">Architecture</th>',
        '<th scope="col">What rules out a runner by itself</th></tr></thead><tbody>',
        *models,
        "</tbody></table>",
        *_html_notes(matrix),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _html_notes(matrix: Matrix) -> list[str]:
    if not matrix.notes:
        return []
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in _NOTE_HEADS)
    rows: list[str] = []
    for note in matrix.notes:
        name, *others = map(html.escape, _note_cells(note))
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        rows.append(f'<tr><th scope="row"><code>{name}</code></th>{cells}</tr>')
    return [
        f"<h2>Consequences</h2><table><thead><tr>{heads}</tr></thead><tbody>",
        *rows,
        "</tbody></table>",
    ]


def _html_cell(matrix: Matrix, cell: Cell) -> str:
    return f'<td class="cell {_rank(matrix, cell)}">{html.escape(cell_text(matrix, cell))}</td>'
