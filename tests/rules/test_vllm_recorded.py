"""vLLM's books against what its releases were recorded to decide for real models and command lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.readable import load_readable
from dodona.oracle.select import select_runner
from dodona.oracle.systems.vllm.assumptions import completed_sections
from dodona.oracle.systems.vllm.model_classes import registry_of
from dodona.oracle.systems.vllm.model_facts import model_section
from dodona.oracle.systems.vllm.startup_checks import readable_length
from tests.support.vllm_agreement import DOCUMENT, compare, documented, releases

HOPPER = Environment(has_triton=True, platform="cuda")
CHOICES, REFUSALS, FACTS = 0.995, 0.95, 0.995
"""Least shares of decided cases, of recorded refusals, and of facts, that the books agree with."""


@pytest.mark.parametrize("release", releases())
def test_the_choice_agrees_with_the_release(release: str) -> None:
    decided = [case for case in compare(release) if case.recorded != "refused"]
    differing = [f"{case.id}: {case.recorded}, book {case.book} ({case.why})" for case in decided]
    wrong = [text for text, case in zip(differing, decided, strict=True) if case.book != case.recorded]
    assert len(wrong) <= (1 - CHOICES) * len(decided), "\n".join(wrong)


@pytest.mark.parametrize("release", releases())
def test_nothing_is_refused_that_the_release_starts(release: str) -> None:
    wrong = [
        f"{case.id}: {case.why}"
        for case in compare(release)
        if case.book == "refused" and case.recorded != "refused"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("release", releases())
def test_refusals_of_the_release_are_known(release: str) -> None:
    refused = [case for case in compare(release) if case.recorded == "refused"]
    missed = [f"{case.id}: {case.why}" for case in refused if case.book != "refused"]
    assert len(missed) <= (1 - REFUSALS) * len(refused), "\n".join(missed)


@pytest.mark.parametrize("release", releases())
def test_the_facts_that_rules_read_are_vllms(release: str) -> None:
    cases = compare(release)
    wrong = [f"{case.id}: {fact}" for case in cases for fact in case.facts]
    assert len(wrong) <= (1 - FACTS) * sum(case.compared for case in cases), "\n".join(wrong)


def test_the_documented_table_is_what_is_measured() -> None:
    assert DOCUMENT.read_text() == documented(), "run `python -m tests.support.vllm_agreement --write`"


def _model(folder: Path, **config: Any) -> ModelInfo:
    (folder / "config.json").write_text(json.dumps(config))
    return load_readable(folder)


def test_a_field_that_no_rule_reads_may_be_unreadable(tmp_path: Path) -> None:
    model = _model(
        tmp_path,
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        rope_theta=[1e4, 1e6],
        sliding_window="none",
    )
    verdict = select_runner(str(tmp_path), rulebook="vllm/0.33.0", environment=HOPPER)
    assert (model.architectures, verdict.runner) == (("LlamaForCausalLM",), "v2")


def test_a_class_that_is_gone_is_refused_from_then_on(tmp_path: Path) -> None:
    _model(tmp_path, architectures=["BaichuanForCausalLM"], model_type="baichuan", num_attention_heads=32)
    refusals = {
        release: bool(select_runner(str(tmp_path), rulebook=f"vllm/{release}", environment=HOPPER).refusals)
        for release in ("0.22.0", "0.33.0")
    }
    assert refusals == {"0.22.0": False, "0.33.0": True}


@pytest.mark.parametrize(
    ("given", "config", "runner"),
    [
        ({}, {"architectures": ["ChatGLMModel"], "model_type": "chatglm"}, "generate"),
        ({}, {"architectures": ["UltravoxModel"], "model_type": "ultravox"}, "generate"),
        ({}, {"architectures": ["NobodysNet"], "model_type": "nobody"}, "generate"),
        ({}, {"architectures": ["BertModel"], "model_type": "bert"}, "pooling"),
        ({"convert": "embed"}, {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "pooling"),
        ({"convert": "none"}, {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "generate"),
    ],
)
def test_pooling_is_what_is_known_to_pool(
    tmp_path: Path, given: dict[str, Any], config: dict[str, Any], runner: str
) -> None:
    section = model_section(given, _model(tmp_path, **config), registry_of("0.33.0"))
    assert section["runner_type"] == runner


def test_an_inner_state_is_not_a_hybrid(tmp_path: Path) -> None:
    granite = {"architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid"}
    registry = registry_of("0.33.0")
    only_attention = model_section({}, _model(tmp_path, **granite, layer_types=["attention"] * 4), registry)
    mixed = model_section({}, _model(tmp_path, **granite, layer_types=["attention", "mamba"]), registry)
    found = [(section["has_inner_state"], section["is_hybrid"]) for section in (only_attention, mixed)]
    assert found == [(True, False), (True, True)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("4096", 4096), ("8k", 8000), ("8K", 8192), ("1.5k", 1500), ("-1", None), ("auto", None), (None, None)],
)
def test_lengths_as_people_write_them(text: str | None, tokens: int | None) -> None:
    assert readable_length(text) == tokens


@pytest.mark.parametrize(
    ("release", "architecture", "machine", "mode"),
    [
        ("0.30.0", "DeepseekV32ForCausalLM", HOPPER, "NONE"),
        ("0.30.0", "Qwen3ForCausalLM", HOPPER, "STOCK_TORCH_COMPILE"),
        ("0.25.1", "DeepseekV32ForCausalLM", HOPPER, "STOCK_TORCH_COMPILE"),
        (
            "0.30.0",
            "DeepseekV32ForCausalLM",
            Environment(has_triton=True, platform="rocm"),
            "STOCK_TORCH_COMPILE",
        ),
        (
            "0.30.0",
            "DeepseekV32ForCausalLM",
            Environment(has_triton=True, platform="cuda", variables=("VLLM_USE_BREAKABLE_CUDAGRAPH",)),
            UNKNOWN,
        ),
    ],
)
def test_breakable_graphs_take_the_place_of_compilation(
    tmp_path: Path, release: str, architecture: str, machine: Environment, mode: Any
) -> None:
    model = _model(tmp_path, architectures=[architecture], model_type="llama")
    found = completed_sections({"compilation_config": {"mode": 1}}, model, machine, release)
    assert found["compilation_config"]["mode"] == mode
