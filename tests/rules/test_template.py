"""`dodona rules new`: the rule loads, and its examples are true and reach all of its condition."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dodona.oracle.analysis.source import sourced_text
from dodona.oracle.authoring.coverage import run_examples
from dodona.oracle.authoring.formatting import format_file
from dodona.oracle.authoring.template import (
    MAX_EXAMPLES,
    append_rule,
    checked_rule,
    examples_of,
    free_precedence,
    new_rule,
)
from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.language.condition_parser import parse_condition
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.own.facts import FACTS
from tests.rules.test_conditions import DATA

TODAY = datetime.date(2026, 1, 31)


def rule_of(when: str, **more: Any) -> dict[str, Any]:
    return new_rule("my-rule", when, today=TODAY, **more)


@given(DATA)
def test_examples_come_out_as_they_say(data: Any) -> None:
    condition = parse_condition(data, FACTS)
    holds, fails = examples_of(condition, FACTS)
    assert len(holds) <= MAX_EXAMPLES
    for facts in holds:
        assert evaluate(condition, facts) is True
    for facts in fails:
        assert evaluate(condition, facts) is False


@settings(deadline=None)
@given(DATA, st.sampled_from(["veto", "require", "override"]))
def test_new_rules_load_and_their_examples_hold(data: Any, kind: Any) -> None:
    condition = parse_condition(data, FACTS)
    holds, fails = examples_of(condition, FACTS)
    assume(holds and fails)
    rule = rule_of(json.dumps(data), kind=kind)
    text = checked_rule(rule, "dodona")
    head = "rulebook: new\ndescription: A new rule.\nsystem: dodona\nrunners: [v2, v1]\nrules:\n"
    assert [f for f in run_examples(sourced_text(head + text)).findings if f.level == "error"] == []


@pytest.mark.parametrize(
    "when",
    [
        "model_config.is_moe: true",
        "parallel_config.tensor_parallel_size: {gt: 1}",
        "parallel_config.tensor_parallel_size: {le: 9007199254740991}",
        "lora_config: {is_set: true}",
        "environment.platform: {not_in: [cuda, rocm]}",
        "model_config.architectures: {any_in: [A, B]}",
        "any: [{model_config.is_moe: true}, {lora_config: true}, {speculative_config.method: {ne: eagle}}]",
        "all: [{model_config.is_moe: true}, {any: [{lora_config: true}, {compilation_config: true}]}]",
        "not: {all: [{model_config.is_moe: true}, {lora_config: true}]}",
    ],
)
def test_examples_reach_every_part(when: str) -> None:
    if "9007199254740991" in when:
        with pytest.raises(ConfigError, match="always fire"):
            rule_of(when)
        return
    head = "rulebook: new\ndescription: A new rule.\nsystem: dodona\nrunners: [v2, v1]\nrules:\n"
    report = run_examples(sourced_text(head + checked_rule(rule_of(when), "dodona")))
    assert report.findings == ()


def test_what_is_not_said_is_made_from_what_is() -> None:
    assert rule_of("parallel_config.tensor_parallel_size: {gt: 1}") == {
        "id": "my-rule",
        "kind": "veto",
        "runners": ["v2"],
        "when": {"parallel_config.tensor_parallel_size": {"gt": 1}},
        "feature": "my rule '{parallel_config.tensor_parallel_size}'",
        "because": "V2 lacks my rule.",
        "since": "2026-01-31",
        "examples": {
            "fires": [{"parallel_config.tensor_parallel_size": 2}],
            "passes": [{"parallel_config.tensor_parallel_size": 1}],
        },
    }
    required = rule_of("model_config.is_moe: false", kind="require", runners=["v1", "v2"])
    assert required["feature"] == "model_config.is_moe is true"
    assert required["because"] == "V1 and V2 needs this: model_config.is_moe is false.".replace(
        "needs", "need"
    )
    assert required["examples"]["fires"] == [{"model_config.is_moe": True}]
    override = rule_of("environment.override: v1", kind="override", runners=["v1"])
    assert (override["precedence"], override["because"]) == (1, "It asks for V1.")
    said = rule_of("model_config.is_moe: true", feature="MoE", because="Not yet.")
    assert (said["feature"], said["because"]) == ("MoE", "Not yet.")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("model_config.is_mow: true", "model_config.is_moe"),
        ("parallel_config.tensor_parallel_size: 0", "outside the range"),
        ("parallel_config.tensor_parallel_size: {ge: 1}", "always fire"),
        ("all: [{model_config.is_moe: true}, {model_config.is_moe: false}]", "never fire"),
        ("{", "is not YAML"),
        ("always", "a condition is a mapping"),
    ],
)
def test_a_condition_that_is_none_is_named(when: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--when") as caught:
        rule_of(when)
    assert message in str(caught.value)


def test_an_id_that_is_none_is_named() -> None:
    with pytest.raises(RuleFileError, match="'id' is 'My Rule'"):
        checked_rule(new_rule("My Rule", "model_config.is_moe: true"), "dodona")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.yaml"
    rule = checked_rule(rule_of("environment.override: v1", kind="override", runners=["v1"]), "dodona")
    path.write_text(
        "rulebook: mine  # my own\ndescription: Mine.\nsystem: dodona\nrunners: [v2, v1]\n\nrules:\n" + rule
    )
    return path


def test_a_rule_is_put_at_the_end_and_the_rest_stays(book: Path) -> None:
    before = book.read_text()
    added = append_rule(book, {**rule_of("model_config.is_moe: true"), "id": "second"})
    assert book.read_text().startswith(before)
    assert [rule.id for rule in added.rules] == ["my-rule", "second"]
    assert added.content_hash == load_rulebook(book).content_hash
    assert format_file(book, write=False)[0] == format_file(book, write=False)[1]


def test_a_rule_that_does_not_fit_changes_nothing(book: Path) -> None:
    before = book.read_text()
    with pytest.raises(RuleFileError, match="used twice"):
        append_rule(book, rule_of("model_config.is_moe: true"))
    assert book.read_text() == before


def test_a_book_whose_rules_come_first_is_told_to_be_formatted(book: Path) -> None:
    head, _, rules = book.read_text().partition("rules:\n")
    book.write_text(f"rules:\n{rules}{head}")
    before = book.read_text()
    with pytest.raises(ConfigError, match="rules fmt"):
        append_rule(book, {**rule_of("model_config.is_moe: true"), "id": "second"})
    assert book.read_text() == before
    format_file(book)
    append_rule(book, {**rule_of("model_config.is_moe: true"), "id": "second"})


def test_the_next_precedence_is_free(book: Path) -> None:
    assert free_precedence(book) == 2
