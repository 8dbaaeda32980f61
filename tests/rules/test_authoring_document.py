"""docs/authoring.md: its files are written, its commands run in order, and their output compared."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from tests.support.child_interpreter import child_environment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "authoring.md").read_text(encoding="utf-8")
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", re.DOTALL)
EDIT = re.compile(r"<!-- edit: (\S+) from (\S+): (.*?) => (.*?) -->\n")
CONSOLE = re.compile(r"```console\n(.*?)```\n", re.DOTALL)


def told(text: str) -> str:
    """What may differ from day to day left out."""
    return re.sub(r"\d{4}-\d{2}-\d{2}", "DATE", text)


def run(command: str) -> str:
    words = shlex.split(command)
    target = words[words.index(">") + 1] if ">" in words else None
    if target is not None:
        words = words[: words.index(">")]
    assert words[0] == "dodona"
    result = CliRunner().invoke(app, words[1:], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1), result.stderr
    if target is not None:
        Path(target).write_text(result.stdout)
        return ""
    return result.stdout


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder after every step of the document, each of which is compared."""
    monkeypatch.chdir(tmp_path)
    found = [*FILE.finditer(DOCUMENT), *EDIT.finditer(DOCUMENT), *CONSOLE.finditer(DOCUMENT)]
    for step in sorted(found, key=lambda match: match.start()):
        if step.re is FILE:
            Path(step[1]).write_text(step[2])
        elif step.re is EDIT:
            text = Path(step[2]).read_text()
            assert step[3] in text
            Path(step[1]).write_text(text.replace(step[3], step[4]))
        else:
            for part in step[1].split("$ ")[1:]:
                command, _, output = part.partition("\n")
                assert told(run(command)) == told(output), command
    return tmp_path


def test_the_commands_say_what_the_document_says(steps: Path) -> None:
    shown = re.findall(r"```yaml\n(  - id: .*?)```\n", DOCUMENT, re.DOTALL)
    assert len(shown) == 1
    assert told(shown[0]) in told((steps / "mine.yaml").read_text())


def test_an_outside_project_gets_the_properties_in_a_few_lines(steps: Path) -> None:
    environment = child_environment(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=steps,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "14 passed" in done.stdout


def test_its_tests_fail_where_its_book_is_wrong(steps: Path) -> None:
    (steps / "mine.yaml").write_text((steps / "next.yaml").read_text())
    environment = child_environment(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", "-k", "examples"],
        cwd=steps,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "example-fails" in done.stdout
