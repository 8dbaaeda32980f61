"""docs/history.md: four edits of a small book, what each did to which configurations, and its tables."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dodona.oracle.analysis.check import check_book
from dodona.oracle.analysis.source import books_of, load_sourced
from dodona.oracle.authoring.coverage import run_examples
from dodona.oracle.authoring.formatting import format_file
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import load_rulebook
from tests.support.history_document import DOCUMENT, FOLDER, edits, render

BOOKS = sorted(FOLDER.glob("*.yaml"))
STORY = ["0-opt-in", "1-the-oracle", "2-parallel-drafting", "3-kv-connector", "4-llama-mistral"]


def test_the_tables_are_up_to_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert render(text) == text, "run `python -m tests.support.history_document`"


def test_the_document_tells_of_each_edit_in_order() -> None:
    told = [edit for edit in edits(DOCUMENT.read_text(encoding="utf-8")) if "precise" not in edit[1]]
    assert told == list(itertools.pairwise(STORY))


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_books_are_sound(path: Any) -> None:
    report = check_book(books_of(str(path))[""])
    assert report.findings == ()
    assert run_examples(load_sourced(str(path))).findings == ()
    before, after = format_file(path, write=False)
    assert before == after


GPU = Environment(has_triton=True, platform="cuda")
CASES: dict[str, tuple[str, dict[str, Any], str | None, list[str]]] = {
    # architecture, sections, what is forced, runner after each edit ("!": the engine would not start)
    "Qwen3": ("Qwen3ForCausalLM", {}, None, ["v1", "v2", "v2", "v2", "v2"]),
    "Llama": ("LlamaForCausalLM", {}, None, ["v1", "v1", "v1", "v1", "v2"]),
    "Mistral": ("MistralForCausalLM", {}, None, ["v1", "v1", "v1", "v1", "v2"]),
    "Gemma": ("Gemma3ForCausalLM", {}, None, ["v1", "v1", "v1", "v1", "v1"]),
    "parallel drafting": (
        "Qwen3ForCausalLM",
        {"speculative_config": {"method": "eagle", "parallel_drafting": True}},
        None,
        ["v1", "v2", "v1", "v1", "v1"],
    ),
    "a connector": (
        "Qwen3ForCausalLM",
        {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}},
        None,
        ["v1", "v2", "v2", "v1", "v1"],
    ),
    "an empty section": (
        "Qwen3ForCausalLM",
        {"kv_transfer_config": {}},
        None,
        ["v1", "v2", "v2", "v1", "v1"],
    ),
    "KV offloading": (
        "Qwen3ForCausalLM",
        {"cache_config": {"kv_offloading_size": 4.0}},
        None,
        ["v1", "v2", "v2", "v2", "v2"],
    ),
    "forced, Gemma": ("Gemma3ForCausalLM", {}, "v2", ["v2", "v2", "v2", "v2", "v2"]),
    "forced, parallel drafting": (
        "Qwen3ForCausalLM",
        {"speculative_config": {"method": "eagle", "parallel_drafting": True}},
        "v2",
        ["v2", "v2", "v2!", "v2!", "v2!"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_each_edit_did(case: str) -> None:
    architecture, sections, forced, expected = CASES[case]
    config = EngineConfig.from_mapping({**sections, "model_config": {"model": "m"}})
    model = ModelInfo.from_mapping({"architectures": [architecture], "model_type": "x"})
    environment = Environment(has_triton=True, platform="cuda", override=forced)  # type: ignore[arg-type]
    found = []
    for name in STORY:
        book = load_rulebook(FOLDER / f"{name}.yaml")
        verdict = verdict_for(config, model, environment, book, trusted=True)
        found.append(f"{verdict.runner}{'!' if verdict.refusals else ''}")
    assert found == expected


def test_the_precise_fact_mends_both_mistakes() -> None:
    book = load_rulebook(FOLDER / "3-kv-connector-precise.yaml")
    model = ModelInfo.from_mapping({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
    runners = [
        verdict_for(
            EngineConfig.from_mapping(config | {"model_config": {"model": "m"}}),
            model,
            GPU,
            book,
            trusted=True,
        ).runner
        for config in ({"kv_transfer_config": {}}, {"cache_config": {"kv_offloading_size": 4.0}})
    ]
    assert runners == ["v2", "v1"]
