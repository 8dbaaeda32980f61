"""The table of facts in docs/rules.md, from the registry: `python -m tests.support.facts_table` writes it."""

from __future__ import annotations

from pathlib import Path

from dodona.oracle.facts import FACTS, FactSpec

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "rules.md"
BEGIN, END = "<!-- facts: begin -->", "<!-- facts: end -->"


def render() -> str:
    """The table, with its markers."""
    rows = [
        f"| `{spec.name}` | {_values(spec)} | {spec.source} | {' '.join(spec.doc.split())} |".replace(
            " |  | ", " | | "
        )
        for spec in sorted(FACTS.values(), key=lambda spec: spec.name)
    ]
    return "\n".join([BEGIN, "| fact | values | from | meaning |", "| --- | --- | --- | --- |", *rows, END])


def _values(spec: FactSpec) -> str:
    if spec.domain is not None and spec.type != "bool":
        text = ", ".join(map(str, spec.domain))
    else:
        text = {"bool": "true, false", "int": "whole number", "str": "text", "list": "list of texts"}[
            spec.type
        ]
        if spec.minimum is not None:
            text += f" from {spec.minimum}"
        if spec.maximum is not None:
            text += f" to {spec.maximum}"
    return text + (", null" if spec.nullable else "")


def current() -> str:
    """The table as the document has it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


if __name__ == "__main__":
    DOCUMENT.write_text(DOCUMENT.read_text(encoding="utf-8").replace(current(), render()), encoding="utf-8")
