"""The tables of facts in docs/, from the registries: `python -m tests.support.facts_table` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dodona.oracle.language.facts import FactSpec
from dodona.oracle.systems.own.facts import FACTS
from dodona.oracle.systems.vllm.facts import VLLM_FACTS

_DOCS = Path(__file__).resolve().parents[2] / "docs"
TABLES: Mapping[Path, Mapping[str, FactSpec]] = {
    _DOCS / "rules.md": FACTS,
    _DOCS / "vllm-books.md": VLLM_FACTS,
}
BEGIN, END = "<!-- facts: begin -->", "<!-- facts: end -->"


def render(facts: Mapping[str, FactSpec]) -> str:
    """The table of a registry, with its markers."""
    rows = [
        f"| `{spec.name}` | {_values(spec)} | {spec.source} | {' '.join(spec.doc.split())} |".replace(
            " |  | ", " | | "
        )
        for spec in sorted(facts.values(), key=lambda spec: spec.name)
    ]
    return "\n".join([BEGIN, "| fact | values | from | meaning |", "| --- | --- | --- | --- |", *rows, END])


def _values(spec: FactSpec) -> str:
    if spec.section:
        return "true, null"
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


def current(document: Path) -> str:
    """The table as a document has it."""
    text = document.read_text(encoding="utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


if __name__ == "__main__":
    for document, facts in TABLES.items():
        text = document.read_text(encoding="utf-8")
        document.write_text(text.replace(current(document), render(facts)), encoding="utf-8")
