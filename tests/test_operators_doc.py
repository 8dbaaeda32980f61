"""docs/operators.md shows what its commands print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.decision_log import LOG_VARIABLE, decision
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.select import select_runner

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
OVERRIDE_VARIABLE = "DODONA_USE_V2_MODEL_RUNNER"
VARIABLES = (OVERRIDE_VARIABLE, "VLLM_USE_V2_MODEL_RUNNER", LOG_VARIABLE)


def examples() -> list[tuple[str, list[str]]]:
    """Commands, and the lines that are shown of their output."""
    blocks = re.findall(r"^```\n\$ (.*?)\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [(command, shown.splitlines()) for command, shown in blocks]


@pytest.mark.parametrize(("command", "shown"), examples(), ids=[str(i) for i in range(len(examples()))])
def test_the_document_shows_what_commands_print(
    command: str, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    env: dict[str, str | None] = dict.fromkeys(VARIABLES)
    while "=" in words[0]:
        name, _, env[name] = words.pop(0).partition("=")
    assert words[0] == "dodona"
    printed = [line.rstrip() for line in CliRunner().invoke(app, words[1:], env=env).stdout.splitlines()]
    whole = "…" not in (shown[0], shown[-1])
    expected = [line for line in shown if line != "…"]
    at = printed.index(expected[0])
    assert printed[at : at + len(expected)] == expected
    assert not whole or len(printed) == len(expected)


def test_there_are_examples() -> None:
    assert len(examples()) >= 6


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(OVERRIDE_VARIABLE, raising=False)
    (block,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    (wanted,) = re.findall(r"# (cache_config.*)", block)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    assert printed.getvalue() == f"{wanted}\n"


def test_the_fields_of_the_log_are_all_described() -> None:
    table = TEXT[TEXT.index("| field | meaning |") :]
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE))))
    verdict = select_runner(ROOT / "checkpoints" / "qwen3", environment=assumed_gpu())
    assert named == set(decision(verdict))
