"""Rule files and configurations of any kind: a result or a named error, in time and in bounded memory; and
nothing in a rule file runs, or reaches a file outside its folder. The long form is benchmarks/rule_fuzz.py.
"""

from __future__ import annotations

import builtins
import os
import socket
import subprocess
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rule_fuzz import TooLong, _run, fuzz_configurations, fuzz_files
from dodona.oracle.authoring.formatting import format_file
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.yaml_source import MAX_BYTES, parse_yaml
from dodona.oracle.systems.books import load_rulebook, parse_rulebook
from tests.rules.test_properties import BOOK


def test_mutated_files() -> None:
    tally = fuzz_files(600, seed=7)
    assert tally.faults == []
    assert set(tally.outcomes) == {"loaded", "named error"}
    assert tally.outcomes["loaded"] > 50
    assert tally.outcomes["named error"] > 200


def test_random_configurations() -> None:
    tally = fuzz_configurations(5000, seed=7)
    assert tally.faults == []
    assert {"v1", "v2", "named error", "no runner, refused"} <= set(tally.outcomes)


def test_the_harness_sees_crashes_and_hangs() -> None:
    steps = iter(["fine", ZeroDivisionError("planted"), "hang", "fine"])

    def one() -> str:
        step = next(steps)
        if isinstance(step, Exception):
            raise step
        while step == "hang":
            try:
                time.sleep(0.01)
            except Exception:
                continue
        return step

    tally = _run(4, one, lambda: "it", 0.2)
    assert tally.outcomes == {"fine": 2, "crashed": 1, "too long": 1}
    assert tally.faults == ["ZeroDivisionError: planted: it", "longer than 0.2 s: it"]
    assert not issubclass(TooLong, Exception)


# --- what a file could do

CODE = (
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:subprocess.Popen [[touch, '{mark}']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!<tag:yaml.org,2002:python/object/apply:eval> [\"open('{mark}', 'w')\"]",
    "{{model_config.__class__.__init__.__globals__}}",
    "'{{model_config.is_moe.__class__}}'",
    "'{{0.__class__}}'",
    "\"{{__import__('os').system('touch {mark}')}}\"",
    "'{{model_config.is_moe!r:>{{model_config.num_experts}}}}'",
)


@pytest.mark.parametrize("value", CODE)
@pytest.mark.parametrize("key", ["feature: LoRA", "because: Not yet.", "when: {lora_config: {is_set: true}}"])
def test_nothing_in_a_file_runs(
    value: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> Any:
        raise SystemError(f"called with {args}")

    for owner, name in (
        (os, "system"), (os, "popen"), (os, "execv"), (subprocess, "Popen"), (socket, "socket"),
        (builtins, "eval"), (builtins, "open"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, forbidden)
    mark = tmp_path / "mark"
    assert key in BOOK
    text = BOOK.replace(key, f"{key.split(':')[0]}: {value.format(mark=mark)}")
    try:
        book = parse_rulebook(text)
    except RuleFileError:
        pass
    else:
        assert key.startswith("because"), "text that says why is text, whatever it holds"
        assert book.by_id["lora"].because
    assert not mark.exists()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    (tmp_path / "outside.yaml").write_text(BOOK)
    inside = tmp_path / "inside"
    (inside / "below").mkdir(parents=True)
    (inside / "below" / "book.yaml").write_text(BOOK)
    (inside / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (inside / "linked").symlink_to(tmp_path)
    (inside / "beside.yaml").write_text(BOOK)
    (inside / "hard.yaml").write_text("rulebook: hard\nextends: beside\n")
    return inside


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "below/book",
        "linked/outside",
        "link",
        "/etc/passwd",
        "./beside",
        "beside.yaml/../beside",
        "..",
        ".",
        "beside\\n",
        "beside%00",
        "~/x",
        "file:///etc/passwd",
        "http://localhost/x",
        "\\\\host\\x",
    ],
)
def test_a_book_extends_only_what_lies_beside_it(folders: Path, name: str) -> None:
    path = folders / "child.yaml"
    for written in (f"'{name}'", f'"{name}"'):
        path.write_text(f"rulebook: child\nextends: {written}\n")
        with pytest.raises(RuleFileError) as caught:
            load_rulebook(path)
        assert "root:" not in str(caught.value), "what another file holds is never shown"
    assert load_rulebook(folders / "hard.yaml").rulebook == "hard"


def test_a_book_that_extends_what_is_no_regular_file(folders: Path) -> None:
    os.mkfifo(folders / "pipe.yaml")
    path = folders / "child.yaml"
    path.write_text("rulebook: child\nextends: pipe\n")
    with pytest.raises(RuleFileError, match="no book pipe"):
        load_rulebook(path)


def test_formatting_a_linked_file_does_not_read_beside_the_link(folders: Path) -> None:
    (folders.parent / "child.yaml").write_text("rulebook: child\nextends: outside\n")
    (folders / "alias.yaml").symlink_to(folders.parent / "child.yaml")
    before, _ = format_file(folders / "alias.yaml", write=False)
    assert "extends: outside" in before


BOMBS = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)),
    "deep flow": "[" * 200_000,
    "deep blocks": "- " * 120_000,
    "deep mapping": "{a: " * 60_000,
    "deep keys": "? " * 120_000,
    "many values": "[" + "1," * 120_000 + "]",
    "many keys": "\n".join(f"k{i}: 1" for i in range(25_000)),
    "long number": "rulebook: " + "9" * 200_000,
    "long text": "rulebook: '" + "x" * 200_000 + "'",
    "long key": "x" * 200_000 + ": 1",
    "long folded": "rulebook: >\n" + "  x\n" * 60_000,
    "blank lines": "\n" * 250_000,
    "comments": "#\n" * 120_000,
    "quotes": "'" * 250_000,
    "too large": "x" * (MAX_BYTES + 1),
    "many rules": BOOK
    + "".join(
        BOOK[BOOK.index("  - id: lora") : BOOK.index("  - id: tensor")].replace("lora", f"r{i}", 1)
        for i in range(600)
    ),
    "wide condition": BOOK.replace(
        "{lora_config: {is_set: true}}",
        "{all: ["
        + ", ".join(
            "{any: ["
            + ", ".join(f"{{parallel_config.tensor_parallel_size: {100 * i + j}}}" for j in range(40))
            + "]}"
            for i in range(40)
        )
        + "]}",
        1,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_time_and_memory(name: str) -> None:
    text = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(RuleFileError):
            parse_rulebook(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 120 * 2**20


def test_a_chain_of_books_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "b0.yaml").write_text(BOOK)
    for i in range(1, 40):
        (tmp_path / f"b{i}.yaml").write_text(f"rulebook: b{i}\nextends: b{i - 1}\n")
    load_rulebook(tmp_path / "b16.yaml")
    with pytest.raises(RuleFileError, match="more than 16"):
        load_rulebook(tmp_path / "b39.yaml")


def test_what_is_within_the_bounds_is_read() -> None:
    wide = "[" + ",".join(["1"] * 19_000) + "]"
    assert len(parse_yaml(wide).data) == 19_000
