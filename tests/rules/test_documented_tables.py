"""The tables of docs/rules.md that say what conditions and rules mean, read from the document and tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dodona.oracle.language.condition_parser import parse_condition
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.yaml_source import parse_yaml
from dodona.oracle.systems.own.facts import FACTS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
VALUES = {"`eagle`": "eagle", "`ngram`": "ngram", "null": None, "unknown": UNKNOWN}
ANSWERS = {"true": True, "false": False, "unknown": None}


def rows(heading: str) -> list[list[str]]:
    table = DOCUMENT[DOCUMENT.index(heading) :].split("\n\n")[0].split("\n")
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in [table[0], *table[2:]]]


HEAD, *BODY = rows("| `speculative_config.method` is |")


@pytest.mark.parametrize("row", BODY, ids=[row[0].strip("` ") for row in BODY])
def test_null_and_unknown(row: list[str]) -> None:
    assert len(BODY) >= 6
    (text,) = re.findall(r"`(.*)`", row[0])
    condition = parse_condition(parse_yaml(text).data, FACTS)
    for value, answer in zip(HEAD[1:], row[1:], strict=True):
        assert evaluate(condition, {"speculative_config.method": VALUES[value]}) is ANSWERS[answer], value
