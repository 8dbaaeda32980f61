"""What decides: rules that are left out, uncertain firings, overrides that refuse, stages of refusals."""

from __future__ import annotations

from typing import Any

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import firings
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from tests.oracle.test_verdict import book, rule

LLAMA = ModelInfo.from_mapping({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
FIRST = {"model_config.is_moe": True}
SECOND = {"model_config.use_mla": True}
THREE = book(
    rule("first", "veto", ["v2"], when=FIRST),
    rule("second", "require", ["v2"], when={"not": SECOND}),
    rule("third", "override", ["v1"], when=FIRST, precedence=1),
)


def fired(facts: dict[str, Any], *without: str) -> list[tuple[str, bool]]:
    return [(each.rule, each.certain) for each in firings(THREE, facts, without=frozenset(without))]


def test_rules_fire_surely_or_not_or_not_at_all() -> None:
    yes, no = {**FIRST, **SECOND}, {"model_config.is_moe": False, "model_config.use_mla": False}
    assert fired(yes) == [("first", True), ("second", True), ("third", True)]
    assert fired(no) == []
    assert fired({**no, **SECOND}) == [("second", True)]
    assert fired({**no, "model_config.is_moe": UNKNOWN}) == [("first", False)]
    assert fired({}) == [("first", False), ("second", False)]


def test_rules_that_are_left_out_do_not_hide_the_others() -> None:
    everything = {**FIRST, **SECOND}
    assert fired(everything, "first") == [("second", True), ("third", True)]
    assert fired(everything, "second") == [("first", True), ("third", True)]
    assert fired(everything, "first", "second", "third") == []


def decided(*rules: dict[str, Any], override: str | None = None, lora: bool = False, **more: Any) -> Verdict:
    environment = Environment(has_triton=True, platform="cuda", override=override)
    config = EngineConfig.from_flat("m", **({"enable_lora": True} if lora else {}))
    trial: RuleBook = book(*rules, **more)
    return verdict_for(config, LLAMA, environment, trial, trusted=True)


def outcome(verdict: Verdict) -> tuple[Any, ...]:
    return (
        verdict.runner,
        verdict.forced,
        verdict.decided_by,
        tuple(reason.rule for reason in verdict.refusals),
    )


FORCED = {"environment.override": "v2"}
LORA = {"lora_config": {"is_set": True}}


def test_an_override_without_a_runner_refuses_the_choice() -> None:
    none = rule("none", "override", [], when=FORCED, precedence=1)
    verdict = decided(none, override="v2")
    assert outcome(verdict) == (None, True, "none", ("none",))
    assert verdict.forced_runner is None
    assert outcome(decided(none)) == ("v2", False, "preferred", ())


@pytest.mark.parametrize(
    ("refusal", "stage", "expected"),
    [
        ("choice", "choice", (None, True, "forced", ("lora",))),
        ("choice", "startup", ("v2", True, "forced", ("lora",))),
        ("choice", "both", (None, True, "forced", ("lora",))),
        ("startup", "choice", ("v2", True, "forced", ())),
        ("startup", "startup", ("v2", True, "forced", ("lora",))),
        ("startup", "both", ("v2", True, "forced", ("lora",))),
    ],
)
def test_what_speaks_against_a_forced_runner(refusal: str, stage: str, expected: tuple[Any, ...]) -> None:
    rules = (
        rule("forced", "override", ["v2"], when=FORCED, precedence=1),
        rule("lora", "veto", ["v2"], when=LORA, stage=stage),
        rule("lora-v1", "veto", ["v1"], when=LORA, stage=stage),
    )
    verdict = decided(*rules, override="v2", lora=True, forced_refusal=refusal)
    assert outcome(verdict) == expected
    assert outcome(decided(*rules, override="v2", forced_refusal=refusal)) == ("v2", True, "forced", ())


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("choice", ("v1", False, "fallback", ())),
        ("startup", ("v2", False, "preferred", ("lora",))),
        ("both", ("v1", False, "fallback", ())),
    ],
)
def test_what_speaks_against_the_preferred_runner(stage: str, expected: tuple[Any, ...]) -> None:
    assert outcome(decided(rule("lora", "veto", ["v2"], when=LORA, stage=stage), lora=True)) == expected


@pytest.mark.parametrize("stage", ["choice", "startup", "both"])
def test_the_last_runner_is_chosen_with_its_refusals(stage: str) -> None:
    rules = (
        rule("lora", "veto", ["v2"], when=LORA),
        rule("lora-v1", "veto", ["v1"], when=LORA, stage=stage),
    )
    assert outcome(decided(*rules, lora=True)) == ("v1", False, "fallback", ("lora-v1",))


@pytest.mark.parametrize("precedences", [(1, 2), (2, 1)])
def test_the_override_of_lowest_precedence_decides(precedences: tuple[int, int]) -> None:
    rules = [
        rule(f"to-{runner}", "override", [runner], when=LORA, precedence=precedence)
        for runner, precedence in zip(("v1", "v2"), precedences, strict=True)
    ]
    first = "v1" if precedences == (1, 2) else "v2"
    assert outcome(decided(*rules, lora=True)) == (first, True, f"to-{first}", ())


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("choice", ("v1", False, "fallback", ())), ("startup", ("v2", True, "to-v2", ("lora",)))],
)
def test_an_override_that_yields_to_vetoes_of_the_choice(stage: str, expected: tuple[Any, ...]) -> None:
    rules = (
        rule("to-v2", "override", ["v2"], when=LORA, precedence=1, unless_vetoed="v2"),
        rule("lora", "veto", ["v2"], when=LORA, stage=stage),
    )
    assert outcome(decided(*rules, lora=True)) == expected
