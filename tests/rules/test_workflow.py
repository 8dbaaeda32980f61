""".github/workflows/rules.yml: its commands, as they stand there, run here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dodona.cli.app import app
from tests.support.child_interpreter import child_environment

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/rules.yml").read_text(encoding="utf-8"))
STEPS = WORKFLOW["jobs"]["rules"]["steps"]
RUNS = [step["run"] for step in STEPS if "run" in step]


def commands(start: str) -> list[list[str]]:
    lines = [line.strip() for run in RUNS for line in run.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(start)]


def test_it_runs_for_changes_of_rules() -> None:
    # YAML 1.1 reads the key `on` as true
    assert "rules/**" in WORKFLOW[True]["pull_request"]["paths"]
    assert WORKFLOW["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("words", commands("dodona rules"), ids=lambda words: words[2])
def test_its_commands_pass(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if words[2] == "diff":
        return
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output


def test_the_difference_is_the_summary(tmp_path: Path) -> None:
    """The last step, in a repository of two commits, whose second changes a rule."""
    (run,) = [run for run in RUNS if "rules diff" in run]
    (tmp_path / "rules").mkdir()
    book = (ROOT / "docs/history/0-opt-in.yaml").read_text(encoding="utf-8")
    (tmp_path / "rules" / "book.yaml").write_text(book)
    environment = child_environment(
        ROOT / "src",
        BASE="main",
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
        GIT_CONFIG_GLOBAL=os.devnull,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    )
    (tmp_path / "bin").mkdir()
    dodona = tmp_path / "bin" / "dodona"
    dodona.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from dodona.cli import main; main()" "$@"\n')
    dodona.chmod(0o755)

    def shell(script: str) -> None:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    commit = "git add rules && git -c user.name=x -c user.email=x@example.org commit -qm x"
    shell(f"git init -q -b work && {commit} && git update-ref refs/remotes/origin/main HEAD")
    shell(run)
    assert "No verdict changes" in (tmp_path / "summary.md").read_text()
    (tmp_path / "summary.md").unlink()
    (tmp_path / "rules" / "book.yaml").write_text(
        book.replace(
            "{environment.override: v2}\n    feature: opt",
            "{environment.override: {is_set: true}}\n    feature: opt",
        )
    )
    shell(commit)
    shell(run)
    assert "| `opt-in` | changed: fires for fewer |" in (tmp_path / "summary.md").read_text()
