"""The evaluation of facts by a book: null and unknown facts, assumptions, rules left out."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.evaluate import evaluate, firing, firings
from dodona.oracle.decide.outcome import Firing, Outcome
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.own.facts import FACTS

METHOD = "speculative_config.method"


def rule(kind: str, when: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": kind,
        "kind": kind,
        "runners": ["v1"] if kind == "override" else ["v2"],
        "when": when,
        "feature": kind,
        "because": "A test.",
        "since": "2026-01-31",
        "examples": {"fires": [{METHOD: "eagle"}], "passes": [{METHOD: None}]},
        **({"precedence": 1} if kind == "override" else {}),
        **more,
    }


def parsed(kind: str, when: dict[str, Any]) -> Rule:
    return Rule.model_validate(rule(kind, when), context=FACTS)


def book(*rules: dict[str, Any], **more: Any) -> RuleBook:
    data = {
        "rulebook": "trial",
        "description": "For tests.",
        "system": "dodona",
        "runners": ["v2", "v1"],
        "rules": list(rules),
    }
    return RuleBook.model_validate({**data, **more}, context=FACTS)


SURE, OPEN = True, False


@pytest.mark.parametrize(
    ("kind", "when", "value", "certain"),
    [
        ("veto", {METHOD: "eagle"}, "eagle", SURE),
        ("veto", {METHOD: "eagle"}, "ngram", None),
        ("veto", {METHOD: "eagle"}, None, None),
        ("veto", {METHOD: "eagle"}, UNKNOWN, OPEN),
        ("veto", {METHOD: {"not_in": ["eagle"]}}, None, SURE),
        ("veto", {METHOD: {"is_set": False}}, None, SURE),
        ("require", {METHOD: "eagle"}, "eagle", None),
        ("require", {METHOD: "eagle"}, None, SURE),
        ("require", {METHOD: "eagle"}, UNKNOWN, OPEN),
        ("override", {METHOD: "eagle"}, "eagle", SURE),
        ("override", {METHOD: "eagle"}, None, None),
        ("override", {METHOD: "eagle"}, UNKNOWN, None),
    ],
)
def test_how_a_rule_fires(kind: str, when: dict[str, Any], value: FactValue, certain: bool | None) -> None:
    expected = None if certain is None else Firing(kind, certain)
    assert firing(parsed(kind, when), {METHOD: value}) == expected


def test_an_absent_fact_is_unknown() -> None:
    assert firing(parsed("veto", {METHOD: "eagle"}), {}) == Firing("veto", certain=False)


def test_what_known_facts_settle_is_sure() -> None:
    either = {"any": [{METHOD: "eagle"}, {"model_config.is_moe": True}]}
    facts: dict[str, FactValue] = {METHOD: UNKNOWN, "model_config.is_moe": True}
    assert firing(parsed("veto", either), facts) == Firing("veto", certain=True)


ASSUMING = book(
    rule("veto", {METHOD: "eagle"}), rule("override", {"model_config.is_moe": True}), assume={METHOD: "eagle"}
)


def test_assumptions_are_put_in_before_rules_fire() -> None:
    found = evaluate(ASSUMING, {METHOD: UNKNOWN, "model_config.is_moe": False})
    assert found.facts == {METHOD: "eagle", "model_config.is_moe": False}
    assert found.assumptions == ("speculative_config.method = eagle (not known)",)
    assert found.firings == (Firing("veto", certain=True),)
    assert found.outcome == Outcome("v1", False, "fallback", ())


def test_known_facts_are_left_alone() -> None:
    facts = {METHOD: None, "model_config.is_moe": True}
    found = evaluate(ASSUMING, facts)
    assert (found.facts, found.assumptions) == (facts, ())
    assert found.firings == (Firing("override", certain=True),)
    assert found.outcome.decided_by == "override"


def test_the_kind_of_an_outcome_is_its_runner_and_whether_it_starts() -> None:
    assert Outcome("v1", False, "fallback", ()).kind == ("v1", False)
    assert Outcome("v1", True, "forced", ("veto", "require")).kind == ("v1", True)
    assert Outcome(None, True, "none", ("none",)).kind == (None, True)


def test_rules_can_be_left_out() -> None:
    facts = {METHOD: "eagle", "model_config.is_moe": True}
    assert [f.rule for f in evaluate(ASSUMING, facts).firings] == ["veto", "override"]
    assert [f.rule for f in firings(ASSUMING, facts, without={"veto"})] == ["override"]
    found = evaluate(ASSUMING, facts, without={"override"})
    assert [f.rule for f in found.firings] == ["veto"]
    assert found.outcome == Outcome("v1", False, "fallback", ())


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="durable-rules has no Python 3.13")
@pytest.mark.parametrize("method", ["eagle", "ngram", None, UNKNOWN])
@pytest.mark.parametrize("moe", [True, False, UNKNOWN])
def test_the_rule_engine_makes_the_same_evaluation(method: FactValue, moe: FactValue) -> None:
    facts = {METHOD: method, "model_config.is_moe": moe}
    assert durable.evaluate(ASSUMING, facts, trusted=True) == evaluate(ASSUMING, facts)
