"""Consequences: reported of the chosen runner, checked, compared, inherited and formatted like rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.check import check_sourced
from dodona.oracle.analysis.diff import diff_books
from dodona.oracle.analysis.source import sourced_text
from dodona.oracle.authoring.coverage import run_examples
from dodona.oracle.authoring.formatting import format_text
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import RuleFileError
from dodona.oracle.explain.text import explain
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import load_rulebook, parse_rulebook

CONSEQUENCES = """
consequences:
  - id: eager
    severity: warning
    runners: [slow, fast]
    when: {model_config.enforce_eager: true}
    feature: eager with {parallel_config.tensor_parallel_size} devices
    because: Nothing is captured.
    mend: Unset enforce_eager.
    since: 2026-11-29
    examples:
      fires: [{model_config.enforce_eager: true}]
      passes: [{model_config.enforce_eager: false}]
  - id: two-devices
    severity: error
    runners: [slow]
    when: {parallel_config.tensor_parallel_size: {gt: 1}}
    feature: several devices
    because: The slow one sums in another order.
    since: 2026-11-29
    examples:
      fires: [{parallel_config.tensor_parallel_size: 2}]
      passes: [{parallel_config.tensor_parallel_size: 1}]
"""
HEAD = """\
rulebook: small
description: Two runners.
system: dodona
runners: [fast, slow]
"""
RULES = """\
rules:
  - id: devices
    kind: veto
    runners: [fast]
    when: {parallel_config.tensor_parallel_size: {gt: 1}}
    feature: several devices
    because: The fast one drives one.
    since: 2026-11-29
    examples:
      fires: [{parallel_config.tensor_parallel_size: 2}]
      passes: [{parallel_config.tensor_parallel_size: 1}]
"""
BOOK = HEAD + CONSEQUENCES + RULES
MACHINE = Environment(has_triton=True, platform="cuda")
MODEL = "checkpoints/qwen3"


def verdict(text: str = BOOK, **arguments: object) -> Verdict:
    config = {"model_config": {"model": MODEL, "enforce_eager": bool(arguments.get("eager"))}}
    if "devices" in arguments:
        config["parallel_config"] = {"tensor_parallel_size": arguments["devices"]}
    return select_runner(config, rulebook=parse_rulebook(text), environment=MACHINE)


@pytest.mark.parametrize(
    ("arguments", "runner", "reported"),
    [
        ({}, "fast", []),
        ({"eager": True}, "fast", ["eager"]),
        ({"devices": 2}, "slow", ["two-devices"]),
        ({"devices": 2, "eager": True}, "slow", ["eager", "two-devices"]),
    ],
)
def test_those_of_the_chosen_runner_are_reported(arguments, runner, reported) -> None:
    found = verdict(**arguments)
    assert (found.runner, [c.consequence for c in found.consequences]) == (runner, reported)
    without = verdict(HEAD + RULES, **arguments)
    assert (without.runner, without.decided_by, without.reasons) == (
        found.runner,
        found.decided_by,
        found.reasons,
    )
    assert Verdict.model_validate_json(found.model_dump_json()) == found


def test_the_text_shows_facts_and_the_mend() -> None:
    text = explain(verdict(devices=2, eager=True))
    assert "warning: eager with 2 devices  [eager]" in text
    assert "To mend it: Unset enforce_eager." in text
    assert "error: several devices  [two-devices]" in text


def test_an_unknown_fact_reports_nothing() -> None:
    book = parse_rulebook(BOOK)
    eager = book.consequences[0]
    assert eager.holds("fast", {"model_config.enforce_eager": True})
    assert not eager.holds("fast", {})
    assert not eager.holds(None, {"model_config.enforce_eager": True})
    assert not book.consequences[1].holds("fast", {"parallel_config.tensor_parallel_size": 2})


def test_a_book_without_them_keeps_its_hash() -> None:
    plain = parse_rulebook(HEAD + RULES)
    assert parse_rulebook(HEAD + "consequences: []\n" + RULES).content_hash == plain.content_hash
    assert parse_rulebook(BOOK).content_hash != plain.content_hash


@pytest.mark.parametrize(
    ("old", "new", "said", "line"),
    [
        ("runners: [slow, fast]", "runners: [slow, quick]", "no runner 'quick'", 9),
        ("id: two-devices", "id: eager", "'eager' is used twice", 18),
        ("id: two-devices", "id: devices", "'devices' is used twice", 18),
        ("severity: error", "severity: fatal", "'severity' is 'fatal'", 19),
        ("mend: Unset", "repair: Unset", "unknown key 'repair'", 13),
        ("when: {model_config.enforce_eager: true}", "when: {model_config.eager: true}", "unknown fact", 10),
    ],
)
def test_what_is_wrong_is_named_at_its_place(old, new, said, line) -> None:
    with pytest.raises(RuleFileError, match=said) as caught:
        parse_rulebook(BOOK.replace(old, new, 1))
    assert caught.value.line == line


def test_check_finds_those_that_are_never_reported() -> None:
    assert not check_sourced(sourced_text(BOOK)).failed
    never = BOOK.replace("runners: [slow]\n    when", "runners: [slow, fast]\n    when")
    found = check_sourced(sourced_text(never)).findings
    assert [(f.code, f.rule, f.place.line) for f in found] == [("dead-consequence", "two-devices", 20)]
    both = "{all: [{model_config.enforce_eager: true}, {model_config.enforce_eager: false}]}"
    dead = BOOK.replace("when: {model_config.enforce_eager: true}", f"when: {both}", 1)
    codes = {(f.code, f.rule) for f in check_sourced(sourced_text(dead)).findings}
    assert ("dead-consequence", "eager") in codes


def test_an_example_that_is_wrong_is_found() -> None:
    wrong = BOOK.replace(
        "passes: [{model_config.enforce_eager: false}]", "passes: [{model_config.enforce_eager: true}]"
    )
    assert [f.code for f in check_sourced(sourced_text(wrong)).findings if f.rule == "eager"] == [
        "example-fails"
    ]
    report = run_examples(sourced_text(wrong))
    assert [f.rule for f in report.findings if f.code == "example-fails"] == ["eager"]


def test_a_difference_is_seen() -> None:
    before = sourced_text(BOOK)
    milder = sourced_text(BOOK.replace("severity: error", "severity: info"))
    assert diff_books(before, milder).settings == ("consequence two-devices changed: severity",)
    reworded = diff_books(before, sourced_text(BOOK.replace("Nothing is captured.", "No graph is captured.")))
    assert not reworded
    assert "consequence eager: other because" in reworded.notes
    gone = diff_books(before, sourced_text(HEAD + RULES))
    assert [s.split(":")[0] for s in gone.settings] == [
        "consequence eager removed",
        "consequence two-devices removed",
    ]


def test_a_book_that_extends_changes_removes_and_adds_them(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BOOK)
    child = (
        "rulebook: child\nextends: base\nremove: [two-devices]\n"
        "consequences:\n  - {id: eager, severity: info}\n"
    )
    (tmp_path / "child.yaml").write_text(child)
    book = load_rulebook(tmp_path / "child.yaml")
    assert [(c.id, c.severity) for c in book.consequences] == [("eager", "info")]
    assert [rule.id for rule in book.rules] == ["devices"]
    (tmp_path / "bad.yaml").write_text(child.replace("severity: info", "severity: dire"))
    with pytest.raises(RuleFileError, match="dire") as caught:
        load_rulebook(tmp_path / "bad.yaml")
    assert caught.value.line == 5


def test_the_formatter_orders_their_keys_and_keeps_comments() -> None:
    canonical = "    severity: warning\n    runners: [slow, fast]"
    mixed = BOOK.replace(canonical, "    runners: [slow, fast]  # both\n    severity: warning")
    written = format_text(mixed)
    assert f"{canonical}  # both\n" in written
    assert format_text(written) == written
    assert parse_rulebook(written) == parse_rulebook(BOOK)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 0), (["--fail-on", "warning"], 1), (["--fail-on", "info"], 1), (["--fail-on", "error"], 0)],
)
def test_the_exit_code_of_select(tmp_path: Path, arguments: list[str], code: int) -> None:
    (tmp_path / "small.yaml").write_text(BOOK)
    command = ["select", MODEL, "--rulebook", str(tmp_path / "small.yaml"), "--enforce-eager", "--json"]
    done = CliRunner().invoke(app, [*command, *arguments])
    assert done.exit_code == code, done.output
    assert [c["consequence"] for c in json.loads(done.output)["consequences"]] == ["eager"]


def test_comparing_books_shows_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BOOK)
    (tmp_path / "b.yaml").write_text(HEAD + RULES)
    books = f"{tmp_path / 'a.yaml'},{tmp_path / 'b.yaml'}"
    done = CliRunner().invoke(app, ["select", MODEL, "--compare", books, "--enforce-eager"])
    assert done.exit_code == 0, done.output
    assert "warning: eager with 1 devices" in " ".join(done.output.split())
