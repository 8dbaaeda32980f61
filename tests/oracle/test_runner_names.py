"""Names of runners are the book's data: a book of three runners that this runtime has never heard of."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from typing import Any

import pytest
from rich.console import Console

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.decide.outcome import Outcome
from dodona.oracle.decide.verdict import Unsupported, Verdict, make_verdict
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.explain.counterfactuals import counterfactuals
from dodona.oracle.explain.table import verdict_table
from dodona.oracle.explain.trace import trace
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.systems.books import parse_rulebook
from dodona.oracle.systems.own.deployment import OwnDeployment
from dodona.oracle.systems.own.facts import FACTS

RUNNERS = ("fast", "slow", "tiny")
REGISTRY = {
    **FACTS,
    "environment.override": dataclasses.replace(FACTS["environment.override"], domain=RUNNERS),
}
TEXT = """\
rulebook: three
description: Three runners.
system: my-engine
runners: [fast, slow, tiny]
environment: {variable: MY_ENGINE_RUNNER, values: {f: fast, s: slow, t: tiny}, otherwise: error}
rules:
"""
RULE = """\
  - id: {id}
    kind: {kind}
    runners: [{runners}]
    when: {when}
    feature: {id}
    because: A test.
    since: 2026-01-31
    examples: {{fires: [{{model_config.is_moe: true}}], passes: [{{model_config.is_moe: false}}]}}
"""
PARALLEL = "parallel_config.pipeline_parallel_size: {gt: 1}"


def rule(id: str, kind: str, runners: str, when: str, *more: str) -> str:
    text = RULE.format(id=id, kind=kind, runners=runners, when="{" + when + "}")
    return text + "".join(f"    {line}\n" for line in more)


BOOK: RuleBook = parse_rulebook(
    TEXT
    + rule("forced-slow", "override", "slow", "environment.override: slow", "precedence: 1")
    + rule("moe", "veto", "fast", "model_config.is_moe: true")
    + rule("pipeline", "veto", "fast, slow", PARALLEL)
    + rule("lora", "veto", "tiny", "lora_config: {is_set: true}")
    + rule("eager", "require", "slow", "model_config.enforce_eager: true", "stage: startup"),
    facts=REGISTRY,
)
PLAIN: dict[str, FactValue] = {
    "environment.override": None,
    "model_config.is_moe": False,
    "model_config.enforce_eager": True,
    "parallel_config.pipeline_parallel_size": 1,
    "lora_config": None,
}
CONFIG = EngineConfig.from_flat("model")


def verdict(**facts: FactValue) -> Verdict:
    changed = {name.replace("__", "."): value for name, value in facts.items()}
    return make_verdict(BOOK, CONFIG, evaluate(BOOK, {**PLAIN, **changed}), evaluated_by="reference")


def text_of(verdict: Verdict) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(verdict_table(verdict))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, Outcome("fast", False, "preferred", ())),
        ({"model_config.is_moe": True}, Outcome("slow", False, "fallback", ())),
        ({"model_config.is_moe": UNKNOWN}, Outcome("slow", False, "fallback", ())),
        ({"parallel_config.pipeline_parallel_size": 2}, Outcome("tiny", False, "fallback", ())),
        ({"environment.override": "slow"}, Outcome("slow", True, "forced-slow", ())),
        (
            {"model_config.is_moe": True, "model_config.enforce_eager": False},
            Outcome("slow", False, "fallback", ("eager",)),
        ),
        (
            {"parallel_config.pipeline_parallel_size": 2, "lora_config": True},
            Outcome("tiny", False, "fallback", ("lora",)),
        ),
    ],
)
def test_each_of_the_runners_can_be_chosen(facts: dict[str, FactValue], expected: Outcome) -> None:
    assert evaluate(BOOK, {**PLAIN, **facts}).outcome == expected


def test_the_variable_leads_to_the_runners_of_the_book() -> None:
    assert BOOK.environment is not None
    assert [BOOK.environment.parse(value) for value in ("f", "s", "t", None)] == [*RUNNERS, None]


def test_a_verdict_has_the_features_of_each_runner() -> None:
    found = verdict(model_config__is_moe=True, lora_config=True).unsupported
    assert set(found.runners) == set(RUNNERS)
    assert (found["fast"], found["slow"], found["tiny"]) == (("moe",), (), ("lora",))
    assert (found.fast, found.tiny) == (("moe",), ("lora",))
    with pytest.raises(KeyError):
        found["v1"]
    with pytest.raises(AttributeError):
        found.v1  # noqa: B018
    with pytest.raises(ValueError, match="frozen"):
        found.fast = ()  # type: ignore[misc]


def test_a_verdict_is_equal_after_json_and_pickle() -> None:
    found = verdict(model_config__is_moe=True, lora_config=True)
    again = Verdict.model_validate_json(found.model_dump_json())
    assert again == found
    assert hash(again) == hash(found)
    assert json.loads(found.model_dump_json())["unsupported"] == {
        "fast": ["moe"],
        "slow": [],
        "tiny": ["lora"],
    }
    assert pickle.loads(pickle.dumps(found)) == found
    assert found != verdict(model_config__is_moe=True)


def test_the_names_do_not_clash_with_attributes() -> None:
    found = Unsupported.model_validate({"copy": ["a"], "model-dump.1": []})
    assert (found["copy"], found["model-dump.1"]) == (("a",), ())
    assert Unsupported.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("wrong", [{"fast": 3}, {"fast": "moe"}, {"fast": [1]}])
def test_features_are_lists_of_texts(wrong: Any) -> None:
    with pytest.raises(ValueError, match="fast"):
        Unsupported.model_validate(wrong)


def test_texts_name_the_runners_of_the_book() -> None:
    found = verdict(parallel_config__pipeline_parallel_size=2, model_config__is_moe=True)
    text = found.explain()
    assert text.startswith("Runner tiny for model: the fallback")
    assert "What fast can't do here:" in text
    assert "What slow can't do here:" not in text, "each reason is told once"
    assert "rules out fast and slow" in text_of(found)
    assert "v1" not in text.lower()
    assert "v2" not in text.lower()


def test_a_refused_fallback_says_whether_any_runner_is_left() -> None:
    middle = verdict(model_config__is_moe=True, model_config__enforce_eager=False)
    assert middle.explain().startswith("Runner slow for model: it is the fallback, but can't start.")
    assert str(UnsupportedConfiguration.from_verdict(middle)).startswith(
        "runner slow (fallback) cannot start"
    )
    last = verdict(parallel_config__pipeline_parallel_size=2, lora_config=True)
    assert last.explain().startswith("No runner for model: the fallback tiny can't serve it either.")
    assert str(UnsupportedConfiguration.from_verdict(last)).startswith("no runner can serve")


def test_a_choice_that_is_refused_names_the_rule() -> None:
    book = parse_rulebook(
        TEXT + rule("never", "override", "", "model_config.is_moe: true", "precedence: 1"), facts=REGISTRY
    )
    found = make_verdict(
        book, CONFIG, evaluate(book, {"model_config.is_moe": True}), evaluated_by="reference"
    )
    message = str(UnsupportedConfiguration.from_verdict(found))
    assert message.startswith("the choice of a runner is refused (never):")
    assert "None" not in message


def test_traces_and_counterfactuals_name_the_runners_of_the_book() -> None:
    config = EngineConfig.from_flat("model", pipeline_parallel_size=2, enforce_eager=True)
    deployment = OwnDeployment(config, None, Environment(has_triton=False, platform="cpu"), BOOK)
    effects = {step.rule.id: step.effect for step in trace(deployment)}
    assert effects["pipeline"] == "rules out fast, slow"
    found = counterfactuals(deployment, "slow")
    assert [[str(change) for change in least] for least in found] == [
        ["parallel_config.pipeline_parallel_size 2 → 1"]
    ]
    assert [str(forcing) for forcing in found.forcing] == ["MY_ENGINE_RUNNER=s: refused for pipeline"]
    with pytest.raises(ValueError, match="no runner 'v1'; it has fast, slow, tiny"):
        counterfactuals(deployment, "v1")
