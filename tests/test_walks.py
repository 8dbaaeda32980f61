"""The newcomer's walks in docs/architecture.md: along imports, and no module twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_floors import imports, modules

ROOT = Path(__file__).resolve().parents[1]
FOUND_BY_NAME = ("oracle.systems.own.system", "runners.v1.runner", "runners.v2.runner")
"""Modules that no module of a walk imports: `oracle.systems.registry` and `runners.build` name them."""


def walks() -> dict[str, list[str]]:
    """The modules of each walk by its heading; a step that names two stands for what another walk has between
    them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text[text.index("## A newcomer's walk") : text.index("## Glossary")]
    found: dict[str, list[str]] = {}
    for part in section.split("### ")[1:]:
        heading, _, body = part.partition("\n")
        steps = [
            re.findall(r"`((?:cli|oracle|runners|kernels)\.[\w.]+)`", line)
            for line in re.findall(r"^\d+\. (.+)$", body, re.MULTILINE)
        ]
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", body, re.MULTILINE)]
        assert numbers == list(range(1, len(steps) + 1)), heading
        found[heading] = []
        for names in steps:
            if len(names) == 1:
                found[heading] += names
            else:
                first, last = names
                whole = found["A request to a token on V1"]
                found[heading] += whole[whole.index(first) : whole.index(last) + 1]
    return found


def test_there_are_four_walks() -> None:
    assert list(walks()) == [
        "A configuration to a verdict",
        "A rule's edit to its blast radius",
        "A request to a token on V1",
        "A request to a token on V2",
    ]


@pytest.mark.parametrize("walk", walks())
def test_a_walk_follows_imports_and_enters_no_module_twice(walk: str) -> None:
    steps = walks()[walk]
    sources = modules()
    assert len(steps) > 5
    assert [name for name in steps if name not in sources] == []
    assert [name for name in steps if steps.count(name) > 1] == []
    reached: set[str] = set()
    for i, name in enumerate(steps):
        assert i == 0 or name in reached or name in FOUND_BY_NAME, f"nothing before {name} imports it"
        reached.update(imports(name, sources))
