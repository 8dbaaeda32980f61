"""Whatever is given as a vLLM configuration: an answer, or an error that is named."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.oracle.analysis.replay import book_answer
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.registry import system_of
from dodona.oracle.systems.vllm.arguments import ARGUMENTS, from_command_line, from_flat
from dodona.oracle.systems.vllm.cases import recorded_answer
from dodona.oracle.systems.vllm.configuration import model_of
from dodona.oracle.systems.vllm.deployment import VllmDeployment
from dodona.oracle.systems.vllm.facts import VLLM_FACTS
from dodona.oracle.systems.vllm.flags import flag_table
from tests.support.vllm_cases import random_case

BOOK = bundled_rulebook("vllm/0.33.0")
GPU = Environment(has_triton=True, platform="cuda")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*ARGUMENTS, *(o.lstrip("-") for o in flag_table().options)]) | st.text(max_size=8)
flags = st.builds(
    lambda dashes, name, dot, value: f"{dashes}{name.replace('_', '-')}{dot}{value}",
    st.sampled_from(["-", "--", "--no-"]),
    names,
    st.sampled_from(["", "", "", ".x", ".mode", ".a.b", "."]),
    st.sampled_from(["", "", "=", "=1", "={}", "=x"]),
)
words = st.lists(
    flags
    | st.sampled_from(["m", "2", "-1", "{}", '{"method": 3}', "[]", "", "-", "--", "true"])
    | st.text(max_size=6),
    max_size=6,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("model")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@given(words)
@settings(max_examples=500, deadline=None)
def test_command_lines(model: str, given_words: list[str]) -> None:
    for command in (given_words, ["vllm", "serve", model, *given_words], " ".join(given_words)):
        try:
            found = from_command_line(command)
            sections = {
                **found.sections,
                "model_config": {**(found.sections.get("model_config") or {}), "model": model},
            }
            for elsewhere in ("revision", "hf_config_path"):
                sections["model_config"].pop(elsewhere, None)
            facts = VllmDeployment(sections, model_of(sections), GPU, BOOK, found.unread).facts()
        except ConfigError:
            continue
        assert set(BOOK.reads) <= set(facts)


@given(st.dictionaries(names, json_values, max_size=5))
@settings(max_examples=300, deadline=None)
def test_flat_arguments(arguments: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        json.dumps(from_flat(arguments).sections)


FIELDS = sorted(
    {path for path, _ in ARGUMENTS.values() if "." in path}
    | {path for spec in VLLM_FACTS.values() for path in spec.reads if "." in path}
    | {"speculative_config.model", "kv_transfer_config.kv_connector"}
)


@given(st.lists(st.tuples(st.sampled_from(FIELDS), json_values), max_size=4), st.booleans())
@settings(max_examples=1000, deadline=None)
def test_mappings(model: str, fields: list[tuple[str, Any]], whole: bool) -> None:
    mapping: dict[str, Any] = {}
    for path, value in fields:
        section, *rest = path.split(".")
        place = mapping.setdefault(section, {})
        for part in rest[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[rest[-1]] = value
        if whole:
            mapping[section] = value
    section = mapping.get("model_config")
    mapping["model_config"] = {**section, "model": model} if isinstance(section, dict) else {"model": model}
    try:
        facts = system_of("vllm").deploy(mapping, GPU, BOOK).facts()
    except ConfigError:
        return
    assert set(BOOK.reads) <= set(facts)


def test_mutated_cases() -> None:
    rng = random.Random(17)
    strange = (None, True, 0, -1, 2**70, 1.5, "x", [], [1], {}, {"a": {}}, float("nan"))
    answered = 0
    for _ in range(3000):
        expect = {"use_v2": True, "startup": "ok", "unsupported_v1": [], "unsupported_v2": []}
        case = copy.deepcopy(random_case(rng)) | {"expect": expect}
        place: Any = case
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.2:
                break
            place = place[key]
        place[key] = rng.choice(strange)
        try:
            book_answer(BOOK, case)
            recorded_answer(case)
        except ConfigError:
            continue
        answered += 1
    assert answered > 500
