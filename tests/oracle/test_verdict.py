"""The verdict: its fold, its text, its JSON, and what `build` refuses."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import evaluate, firings, with_assumptions
from dodona.oracle.decide.outcome import Firing, Outcome, decide
from dodona.oracle.decide.verdict import Verdict, make_verdict
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.own.facts import FACTS
from dodona.oracle.testing import engine_config_mappings, environments, model_infos

BOOK = bundled_rulebook("dodona")
GPU = Environment(has_triton=True, platform="cuda")


def rule(id: str, kind: str, runners: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "kind": kind,
        "runners": runners,
        "when": {"model_config.is_moe": True},
        "feature": id,
        "because": "A test.",
        "since": "2026-01-31",
        "examples": {"fires": [{"model_config.is_moe": True}], "passes": [{"model_config.is_moe": False}]},
        **more,
    }


def book(*rules: dict[str, Any], **more: Any) -> RuleBook:
    return RuleBook.model_validate(
        {
            "rulebook": "trial",
            "description": "For tests.",
            "system": "dodona",
            "runners": ["v2", "v1"],
            "rules": list(rules),
            **more,
        },
        context=FACTS,
    )


STAGED = book(
    rule("to-v1", "override", ["v1"], precedence=2),
    rule("to-v2", "override", ["v2"], precedence=1, unless_vetoed="v2"),
    rule("both", "veto", ["v1", "v2"]),
    rule("choice", "require", ["v2"], stage="choice"),
    rule("startup", "veto", ["v2"], stage="startup"),
    rule("v1-startup", "veto", ["v1"], stage="startup"),
)


@pytest.mark.parametrize(
    ("fired", "expected"),
    [
        ([], Outcome("v2", False, "preferred", ())),
        (["startup"], Outcome("v2", False, "preferred", ("startup",))),
        (["choice"], Outcome("v1", False, "fallback", ())),
        (["choice", "v1-startup"], Outcome("v1", False, "fallback", ("v1-startup",))),
        (["both"], Outcome("v1", False, "fallback", ("both",))),
        (["to-v2"], Outcome("v2", True, "to-v2", ())),
        (["to-v1", "to-v2"], Outcome("v2", True, "to-v2", ())),
        (["to-v2", "startup"], Outcome("v2", True, "to-v2", ("startup",))),
        (["to-v2", "choice"], Outcome("v1", False, "fallback", ())),
        (["to-v1", "to-v2", "choice"], Outcome("v1", True, "to-v1", ())),
        (["to-v1", "both"], Outcome(None, True, "to-v1", ("both",))),
        (["to-v1", "v1-startup"], Outcome("v1", True, "to-v1", ("v1-startup",))),
    ],
)
def test_the_fold(fired: list[str], expected: Outcome) -> None:
    assert decide(STAGED, [Firing(id, certain=True) for id in fired]) == expected
    backwards = decide(STAGED, [Firing(id, certain=True) for id in reversed(fired)])
    assert (backwards.runner, backwards.decided_by, set(backwards.refusals)) == (
        expected.runner,
        expected.decided_by,
        set(expected.refusals),
    )


def test_an_override_needs_to_know() -> None:
    fired = firings(STAGED, {"model_config.is_moe": UNKNOWN})
    assert {f.rule for f in fired} == {"both", "choice", "startup", "v1-startup"}
    assert not any(f.certain for f in fired)


def test_assumptions_stand_in_for_what_is_not_known() -> None:
    assuming = book(rule("moe", "veto", ["v2"]), assume={"model_config.is_moe": False})
    facts, assumed = with_assumptions(assuming, {"model_config.is_moe": UNKNOWN})
    assert facts["model_config.is_moe"] is False
    assert assumed == ("model_config.is_moe = false (not known)",)
    known = {"model_config.is_moe": True}
    assert with_assumptions(assuming, known) == (known, ())


def test_an_unknown_fact_is_named_in_the_reason() -> None:
    config = EngineConfig.from_flat("m")
    verdict = verdict_for(config, None, GPU, BOOK, trusted=True)
    reasons = {reason.rule: reason for reason in verdict.reasons}
    assert reasons["moe"].unknown == ("model_config.is_moe",)
    assert reasons["moe"].facts == ()
    assert "Not known: model_config.is_moe" in verdict.explain()
    assert "tensor-parallelism" not in reasons


@settings(max_examples=150)
@given(engine_config_mappings(), model_infos(), environments())
def test_json_and_pickle_round_trips(
    mapping: dict[str, Any], model: ModelInfo, environment: Environment
) -> None:
    config = EngineConfig.from_mapping(mapping)
    verdict = verdict_for(config, model, environment, BOOK, trusted=True)
    again = Verdict.model_validate_json(verdict.model_dump_json())
    assert again == verdict
    assert again.config == config
    assert hash(again) == hash(verdict)
    assert again.explain() == verdict.explain()
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert verdict_for(config, model, environment, BOOK, trusted=True) == verdict


@settings(max_examples=150)
@given(engine_config_mappings(), model_infos(), environments())
def test_the_text_names_every_reason(
    mapping: dict[str, Any], model: ModelInfo, environment: Environment
) -> None:
    verdict = verdict_for(EngineConfig.from_mapping(mapping), model, environment, BOOK, trusted=True)
    text = verdict.explain()
    joined = " ".join(text.split())
    assert max(map(len, text.split("\n"))) < 200
    for reason in verdict.reasons:
        assert f"[{reason.rule}" in text
        for part in (reason.feature, reason.because, reason.remedy, *reason.refs):
            assert " ".join(part.split()) in joined
    assert (verdict.runner or "No runner") in text.split("\n")[0]
    for runner in ("v1", "v2"):
        expected = [r.feature for r in verdict.reasons if r.kind != "override" and runner in r.runners]
        assert list(verdict.unsupported[runner]) == expected


def test_a_verdict_is_frozen() -> None:
    verdict = verdict_for(EngineConfig.from_flat("m"), None, GPU, BOOK, trusted=True)
    with pytest.raises(ValueError, match="frozen"):
        verdict.runner = "v2"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        verdict.unsupported.v1 = ()  # type: ignore[misc]


def test_build_refuses_what_can_not_serve() -> None:
    refused = verdict_for(EngineConfig.from_flat("m", tensor_parallel_size=2), None, GPU, BOOK, trusted=True)
    with pytest.raises(UnsupportedConfiguration, match="tensor parallelism") as caught:
        refused.build()
    assert caught.value.verdict is refused


def test_build_refuses_verdicts_about_other_systems() -> None:
    other = book(rule("moe", "veto", ["v2"]), system="vllm")
    config = EngineConfig.from_flat("m")
    evaluation = evaluate(other, {"model_config.is_moe": False})
    verdict = make_verdict(other, config, evaluation, evaluated_by="reference")
    assert verdict.runner == "v2"
    with pytest.raises(UnsupportedConfiguration, match="describes vllm"):
        verdict.build()


def test_the_forced_runner_is_named_also_where_it_is_refused() -> None:
    forced = Environment(has_triton=False, platform="cpu", override="v2")
    verdict = verdict_for(EngineConfig.from_flat("m"), None, forced, BOOK, trusted=True)
    assert (verdict.runner, verdict.forced, verdict.forced_runner) == (None, True, "v2")
    error = UnsupportedConfiguration.from_verdict(verdict)
    assert "v2, which was forced" in str(error)
    assert all(reason.because in str(error) for reason in verdict.refusals)
    free = verdict_for(EngineConfig.from_flat("m"), None, GPU, BOOK, trusted=True)
    assert free.forced_runner is None


def test_a_verdict_that_an_earlier_version_wrote_is_read() -> None:
    """The file was written while a verdict's fields for unsupported features were `v1` and `v2`."""
    text = (Path(__file__).parents[1] / "data" / "verdict.json").read_text(encoding="utf-8")
    found = Verdict.model_validate_json(text)
    assert found.unsupported["v1"] == found.unsupported.v1
    assert "tensor parallelism (2 devices)" in found.unsupported.v2
    written = json.loads(text)
    written["environment"] |= {"wsl": False, "wsl_pin_memory": False, "memory": None, "variables": []}
    written["environment"] |= {"packages": {}, "host_memory": None, "ray_cluster": False}
    written["environment"] |= {"is_here": False}
    assert json.loads(found.model_dump_json()) == {**written, "consequences": [], "unread": []}
