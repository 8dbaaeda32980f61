"""The quick reader of plain YAML gives what the full reader gives, or nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle.errors import RuleFileError
from dodona.oracle.yaml_quick import read_plain
from dodona.oracle.yaml_source import Position, parse_yaml, read_fully

RULES = Path(__file__).resolve().parents[2] / "rules"
BOOKS = sorted(RULES.rglob("*.yaml"))


def _agree(text: str) -> bool:
    """Whether the quick reader read the text at all; fails where the full one reads it differently."""
    quick = read_plain(text)
    if quick is None:
        return False
    full = read_fully(text, file="<text>")
    data, places, key_places = quick
    assert repr(data) == repr(full.data), text
    assert {path: Position(*place) for path, place in places.items()} == dict(full.positions), text
    assert {path: Position(*place) for path, place in key_places.items()} == dict(full.key_positions), text
    return True


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.relative_to(RULES).as_posix())
def test_every_bundled_book_is_plain(path: Path) -> None:
    assert _agree(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "a:\n  - b\n  - c: [1, -2, {d: null}]\n    e: {}\n",
        "a: 'it''s'\nb: \"x # y: z\"\nc: []\n",
        "a: >-\n  one\n  two\nb: 3\n",
        "# c\n\na: b#c\n# d\n",
        "- a\n- b: 1\n  c: 2\n-  d\n",
        "a: [https://x.org/y, 0.22.0, 2026-01-01, vllm#1]\n",
    ],
)
def test_what_is_plain_is_read_alike(text: str) -> None:
    assert _agree(text) is ("-  d" not in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only\n",
        "a",
        "a:",
        "a: b: c",
        "a: b\n  c",
        "a: &x 1",
        "a: *x",
        "a: !t 1",
        "a: |\n  b",
        "a: yes",
        "a: 1.5",
        "a: 0x1",
        "a: 01",
        "a: [1,2]",
        "a: [b\n  ]",
        "a: {b}",
        "a: [b: c]",
        "a: 1 # c",
        "a: 'b' c",
        "a:\tb",
        "a: b\t",
        "a: b\r\n",
        "a: 1\na: 2",
        "a: {b: 1, b: 2}",
        "<<: {a: 1}",
        "on: 1",
        "? a\n: b",
        "---\na: 1",
        "a: 1\n...",
        "a:\n- b",
        "- - a",
        "a: >-\n  b\n\n  c",
        "a: >-\n  b\n  # c\n",
        "a: >-\n  b\n   c\n",
        "a: >-\n  b\n\n  # c\n",
        "a:  b",
        "a: @b",
        'a: "\\n"',
        "a: ~",
        " a: 1\nb: 2",
        "a: 99999999999999999999",
        "a: {'b': 1,}",
        "a: [a, ]",
        "a: -",
        "a: - b",
        "1: a",
        "a: [",
        "\ufeffa: 1",
        "a: \u2028",
        "a: [b]]",
        "a: 12:30",
    ],
)
def test_what_is_not_surely_plain_is_left_to_the_full_reader(text: str) -> None:
    assert read_plain(text) is None


def test_values_in_great_number_and_depth_are_left_to_the_full_reader() -> None:
    assert read_plain("a: [" + ", ".join(["x"] * 30_000) + "]") is None
    assert read_plain("a: " + "[" * 500 + "]" * 500) is None
    assert read_plain("".join(f"{' ' * i}a:\n" for i in range(500)) + " " * 500 + "a: 1\n") is None
    with pytest.raises(RuleFileError):
        parse_yaml("a: [" + ", ".join(["x"] * 30_000) + "]")


def test_mutated_books_are_read_alike_or_left_to_the_full_reader() -> None:
    rng = random.Random(5)
    lines = [line for path in BOOKS for line in path.read_text(encoding="utf-8").splitlines()]
    read = 0
    for _ in range(2500):
        start = rng.randrange(len(lines))
        part = lines[start : start + rng.randint(1, 14)]
        cut = len(part[0]) - len(part[0].lstrip(" "))
        text = "\n".join(line[cut:] if not line[:cut].strip() else line for line in part)
        for _ in range(rng.randint(0, 3)):
            text = _mutated(text, rng)
        try:
            read += _agree(text)
        except RuleFileError as error:
            pytest.fail(f"only the quick reader takes {text!r}: {error}")
    assert read > 500


def _mutated(text: str, rng: random.Random) -> str:
    at = rng.randint(0, len(text))
    strange = rng.choice("  \n\n::,,[]{}'\"#-->|&*!%@`?~0159.eyonéx\t\\/_()+=")
    match rng.randrange(5):
        case 0:
            return text[:at] + strange + text[at:]
        case 1:
            return text[:at] + text[at + 1 :]
        case 2:
            return text[:at] + strange + text[at + 1 :]
        case 3:
            rows: list[Any] = text.split("\n")
            rows.insert(rng.randint(0, len(rows)), rng.choice(rows))
            return "\n".join(rows)
        case _:
            rows = text.split("\n")
            row = rng.randrange(len(rows))
            rows[row] = " " * rng.randint(1, 3) + rows[row] if rng.random() < 0.5 else rows[row][1:]
            return "\n".join(rows)
