"""`dodona rules fmt`: one layout for one content, every comment kept, no verdict changed."""

from __future__ import annotations

import functools
import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dodona.oracle.authoring import formatting
from dodona.oracle.authoring.formatting import (
    RULE_KEYS,
    WIDTH,
    FormatError,
    format_file,
    format_text,
    write_atomically,
)
from dodona.oracle.authoring.tree import read_tree
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.extends import folder_sibling
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.yaml_source import parse_yaml
from dodona.oracle.systems.books import load_rulebook, parse_rulebook

RULES = Path(__file__).resolve().parents[2] / "rules"
FILES = sorted(RULES.rglob("*.yaml"))

UGLY = """\
# about the book

# more about it
rules:   # the rules
-   {id: lora, kind: veto, since: 2026-01-31,   # an early one
     runners: [v2], when: {lora_config: {is_set: true}}, feature: 'LoRA',
     because: "Not
       yet.", examples: {passes: [{lora_config: null}], fires: [{lora_config: true}]}}
# between
#  two rules

- since: '2026-01-31'
  # about the id
  id: "sizes"
  kind: veto   # of V2
  examples:
    fires:
    - {parallel_config.tensor_parallel_size: 2,
       # deep inside
       lora_config: true}
    passes: [{parallel_config.tensor_parallel_size: 1}]   # the least
    # commented out: true
  when: {all: [{any: [{parallel_config.tensor_parallel_size: {gt: 1}}]},
     {not: {not: {lora_config: true}}}]}
  because: >
    A sentence that is here to be folded, for it holds more characters than fit on one
    line; where-a-line-has-to-be-broken-it-is-at-a-space.


  feature: sizes # no comment: yes it is
  runners:
    - v2
    # no more
# after the rules
system: dodona
runners: [v2, v1]
  # indented footer
rulebook: ugly
description: Ugly.
#end
"""

NEAT = """\
# about the book

# more about it

rulebook: ugly
description: Ugly.
# after the rules
system: dodona
runners: [v2, v1]
  # indented footer

rules:  # the rules
  - id: lora  # an early one
    kind: veto
    runners: [v2]
    when: {lora_config: {is_set: true}}
    feature: LoRA
    because: Not yet.
    since: 2026-01-31
    examples:
      fires: [{lora_config: true}]
      passes: [{lora_config: null}]

  # between
  #  two rules

  # about the id
  - id: sizes
    kind: veto  # of V2
    runners: [v2]
    # commented out: true
    when:
      all:
        - any:
            - parallel_config.tensor_parallel_size: {gt: 1}
        - not: {not: {lora_config: true}}
    feature: sizes  # no comment: yes it is
    because: >-
      A sentence that is here to be folded, for it holds more characters than fit on one line;
      where-a-line-has-to-be-broken-it-is-at-a-space.
    since: 2026-01-31
    examples:
      fires:
        - parallel_config.tensor_parallel_size: 2
          # deep inside
          lora_config: true
      passes: [{parallel_config.tensor_parallel_size: 1}]  # the least

  # no more
#end
"""


def comments(text: str) -> list[str]:
    return sorted(read_tree(text, parse_yaml(text)).comments())


def test_one_layout() -> None:
    written = format_text(UGLY)
    assert written.splitlines() == NEAT.splitlines()
    assert format_text(written) == written


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bundled_books_are_formatted(path: Path) -> None:
    before, after = format_file(path, write=False)
    assert before == after, f"run `dodona rules fmt {path}`"


def test_lines_are_no_longer_than_they_must_be() -> None:
    for path in FILES:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert len(line) <= WIDTH or line.lstrip().startswith("#") or " " not in line.strip(" -"), line


def test_every_key_of_a_rule_has_its_place() -> None:
    assert set(RULE_KEYS) == set(Rule.model_fields)


# --- any layout of a book comes to the same

BOOK = (RULES / "vllm" / "0.33.0.yaml").read_text(encoding="utf-8")
SIBLING = functools.cache(folder_sibling(RULES / "vllm" / "0.33.0.yaml"))


@functools.cache
def content_hash_of_book() -> str:
    return parse_rulebook(BOOK, sibling=SIBLING).content_hash


def scribbled(text: str, rng: random.Random, *, notes: bool = True) -> tuple[str, int]:
    """The same content, laid out by chance: comments, blank lines, quotes, order of keys."""
    data = parse_yaml(text).data
    made = itertools.count()

    def comment() -> str:
        return f"# c{next(made)}" + rng.choice(["", " ", ": x", " 'q\" [{", " #"])

    def gap(indent: int) -> str:
        lines = []
        while rng.random() < 0.2:
            deeper = " " * (indent + rng.choice([0, 0, 2]))
            lines.append(f"{deeper}{comment()}\n" if notes and rng.random() < 0.6 else "\n")
        return "".join(lines)

    def end() -> str:
        return f"  {comment()}\n" if notes and rng.random() < 0.1 else "\n"

    def scalar(value: Any, flow: bool) -> str:
        if not isinstance(value, str):
            return {None: "null", True: "true", False: "false"}.get(value, str(value))
        style = rng.random()
        if style < 0.3 or value.startswith(("[", "{")):
            return "'" + value.replace("'", "''") + "'"
        return formatting._text(value, flow)

    def flow(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + rng.choice([", ", " , "]).join(f"{k}: {flow(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(flow, value)) + "]"
        return scalar(value, True)

    def entries(value: dict[str, Any]) -> list[tuple[str, Any]]:
        items = list(value.items())
        if len(items) > 1 and "rules" not in value:
            rng.shuffle(items)
        return items

    def block(value: Any, indent: int, first: str = "") -> str:
        pad = " " * indent
        if isinstance(value, dict):
            out = ""
            for k, v in entries(value):
                lead = "" if first else gap(indent)
                out += lead + (first or pad) + f"{k}:" + nested(v, indent)
                first = ""
            return out
        return "".join(
            gap(indent)
            + (
                block(item, indent + 2, f"{pad}- ")
                if isinstance(item, dict) and rng.random() < 0.7
                else f"{pad}- {flow(item)}{end()}"
            )
            for item in value
        )

    def nested(value: Any, indent: int) -> str:
        if not isinstance(value, (dict, list)) or not value or rng.random() < 0.3:
            return f" {flow(value) if isinstance(value, (dict, list)) else scalar(value, False)}{end()}"
        return end() + block(value, indent + 2)

    written = gap(0) + block(data, 0) + gap(0)
    return written, next(made)


@settings(
    max_examples=30, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow], deadline=None
)
@given(st.integers(0, 2**32))
def test_idempotent_and_changes_no_verdict(seed: int) -> None:
    text, count = scribbled(BOOK, random.Random(seed))
    written = format_text(text, file="child.yaml", sibling=SIBLING)
    assert format_text(written, file="child.yaml", sibling=SIBLING) == written
    assert len(comments(text)) == count
    assert comments(written) == comments(text)
    book = parse_rulebook(text, sibling=SIBLING)
    assert parse_rulebook(written, sibling=SIBLING).content_hash == book.content_hash
    assert book.content_hash == content_hash_of_book()


def test_the_layout_does_not_hang_on_the_layout_before() -> None:
    plain = "\n".join(line for line in BOOK.splitlines() if not line.lstrip().startswith("#"))

    def shape(text: str) -> list[list[str]]:
        # only the order of facts within an example is the author's
        return sorted(sorted(line.replace("- ", "  ")) for line in text.splitlines())

    expected = shape(format_text(plain, sibling=SIBLING))
    for seed in range(20):
        text, _ = scribbled(plain, random.Random(seed), notes=False)
        assert shape(format_text(text, sibling=SIBLING)) == expected


# --- safety


def test_a_broken_book_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "book.yaml"
    path.write_text(NEAT.replace("kind: veto", "kind: vetto"))
    before = path.read_bytes()
    with pytest.raises(RuleFileError, match="vetto"):
        format_file(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda text: text.replace("[v2, v1]", "[v1, v2]"), "mean something else"),
        (lambda text: text.replace("# between", ""), "comment would be lost"),
        (lambda text: text + "]", "can't be read"),
        (lambda text: text.replace("refs", "refs") + "forced_refusal: startup\n", "mean something else"),
    ],
)
def test_a_faulty_layout_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, message: str
) -> None:
    path = tmp_path / "book.yaml"
    path.write_text(NEAT)
    real = formatting._Writer.file
    monkeypatch.setattr(formatting._Writer, "file", lambda *args: fault(real(*args)))
    with pytest.raises(FormatError, match=message):
        format_file(path)
    assert path.read_text() == NEAT


def test_files_are_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "book.yaml", tmp_path / "link.yaml"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_atomically(link, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777, link.is_symlink()) == ("new", 0o640, True)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "newer")
    assert path.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["book.yaml", "link.yaml"]


def test_windows_line_ends_and_document_marks() -> None:
    text = "--- # head\r\n" + NEAT.replace("\n", "\r\n") + "...\r\n"
    written = format_text(text)
    assert "\r" not in written
    assert comments(written) == sorted([*comments(NEAT), "# head"])


def test_formatting_is_part_of_what_a_book_of_ones_own_is_tested_for(tmp_path: Path) -> None:
    from dodona.oracle.testing import RuleBookTests

    path = tmp_path / "book.yaml"
    path.write_text(NEAT.replace("kind: veto", "kind:   veto"))
    trial = type("TestTrial", (RuleBookTests,), {"book": path})
    with pytest.raises(AssertionError, match="rules fmt"):
        trial().test_formatted()
    path.write_text(NEAT)
    trial().test_formatted()
    assert load_rulebook(path).rulebook == "ugly"
