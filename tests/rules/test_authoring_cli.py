"""`dodona rules test`, `fmt`, `new` and `schema` on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.authoring.schema import schema_text
from dodona.oracle.systems.books import load_rulebook
from tests.rules.test_formatting import NEAT, UGLY


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, ["rules", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def ugly(tmp_path: Path) -> Path:
    path = tmp_path / "ugly.yaml"
    path.write_text(UGLY)
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text(NEAT.replace("fires: [{lora_config: true}]", "fires: [{lora_config: null}]"))
    return path


def test_examples_of_all_books() -> None:
    result = run("test", "--strict")
    assert result.exit_code == 0
    assert re.fullmatch(
        r"2\d books, \d+ rules: (\d+) of \1 examples hold; "
        r"they reach (\d+) of \2 parts of `all` and `any` and \d+ of \d+ listed values\n",
        result.stdout,
    )


def test_a_failing_example(wrong: Path) -> None:
    result = run("test", str(wrong))
    assert result.exit_code == 1
    line = NEAT.splitlines().index("      fires: [{lora_config: true}]") + 1
    assert result.stdout.startswith(f"{wrong}:{line}:15: error[example-fails]: rule lora: the example")
    assert "1 book, 2 rules: 3 of 4 examples hold" in result.stdout


def test_unreached_parts_fail_where_they_are_asked_to(ugly: Path) -> None:
    assert run("test", str(ugly)).exit_code == 0
    result = run("test", str(ugly), "--strict")
    assert (result.exit_code, result.stdout.count("warning[unreached-branch]")) == (1, 1)


def test_the_forms_of_a_report(wrong: Path) -> None:
    result = run("test", str(wrong), "--github")
    assert result.exit_code == 1
    assert all(line.startswith(("::error file=", "::warning file=")) for line in result.stdout.splitlines())
    data = json.loads(run("test", str(wrong), "--json").stdout)
    assert data["counts"]["failed"] == 1
    assert [finding["code"] for finding in data["findings"]] == ["example-fails", "unreached-branch"]
    assert data["findings"][0]["file"] == str(wrong)
    assert run("test", "--json", "--github").exit_code == 2


def test_books_that_are_not_there(tmp_path: Path) -> None:
    assert run("test", "dodnoa").exit_code == 2
    assert run("test", str(tmp_path)).exit_code == 2
    assert run("fmt", str(tmp_path / "absent.yaml")).exit_code == 2


def test_formatting(ugly: Path) -> None:
    checked = run("fmt", str(ugly), "--check")
    assert (checked.exit_code, checked.stdout) == (1, f"would change {ugly}\n")
    shown = run("fmt", str(ugly.parent), "--diff")
    assert (shown.exit_code, ugly.read_text()) == (0, UGLY)
    assert shown.stdout.startswith(f"--- {ugly}\n+++ {ugly}\n@@ ")
    assert run("fmt", str(ugly), "--diff", "--check").exit_code == 1
    done = run("fmt", str(ugly))
    assert (done.exit_code, done.stdout, ugly.read_text()) == (0, f"formatted {ugly}\n", NEAT)
    again = run("fmt", str(ugly), "--check")
    assert (again.exit_code, again.stdout) == (0, "")


def test_formatting_what_is_no_book(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rulebook: [\n")
    result = run("fmt", str(path))
    assert (result.exit_code, path.read_text()) == (2, "rulebook: [\n")
    assert f"{path}:2:1: is not YAML" in result.stderr


def test_new_rules(ugly: Path) -> None:
    printed = run("new", "moe", "--when", "model_config.is_moe: true", "--runner", "v1", "--runner", "v2")
    assert (printed.exit_code, printed.stdout.splitlines()[:3]) == (
        0,
        ["  - id: moe", "    kind: veto", "    runners: [v1, v2]"],
    )
    run("fmt", str(ugly))
    # what stands below the rules could speak of any of them
    ugly.write_text(ugly.read_text().replace("  # no more\n\n#end\n", ""))
    added = run(
        "new", "forced", "--kind", "override", "--when", "environment.override: v1", "--append", str(ugly)
    )
    assert (added.exit_code, added.stdout) == (0, f"{ugly}: added forced\n")
    again = run(
        "new", "forced-too", "--kind", "override", "--when", "environment.override: v2", "--append", str(ugly)
    )
    assert again.exit_code == 0
    rules = load_rulebook(ugly).by_id
    assert (rules["forced"].precedence, rules["forced-too"].precedence) == (1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--when", "model_config.is_mow: true"], "model_config.is_moe"),
        (["x", "--when", "model_config.is_moe: true", "--precedence", "3"], "a veto has none"),
        (["x", "--when", "model_config.is_moe: true", "--system", "sglang"], "expected dodona or vllm"),
        (["x", "--when", "model_config.is_moe: true", "--system", "vllm", "--append", "x"], "itself"),
        (["X!", "--when", "model_config.is_moe: true"], "wrong form"),
        (["x", "--when", "model_config.is_moe: true", "--append", "/nowhere.yaml"], "/nowhere.yaml"),
        (["x", "--when", "parallel_config.enable_dbo: true"], "unknown fact"),
    ],
)  # fmt: skip
def test_what_makes_no_rule(words: list[str], message: str) -> None:
    result = run("new", *words)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_rule_for_vllm() -> None:
    result = run("new", "dbo", "--when", "parallel_config.enable_dbo: true", "--system", "vllm")
    assert result.exit_code == 0


def test_the_schema() -> None:
    assert run("schema").stdout == schema_text()
