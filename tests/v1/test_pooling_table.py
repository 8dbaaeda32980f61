"""The table of docs/pooling.md: generated from results, which agree with the rules."""

from __future__ import annotations

import json

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import load_rulebook
from tests.support import pooling_table

RESULTS = {
    file.stem.removeprefix("transformers-"): json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(pooling_table.results_file("x").parent.glob("*.json"))
}
BOOK = load_rulebook("dodona")
SUFFIX = {
    "embed": "Model",
    "classify": "ForSequenceClassification",
    "token_classify": "ForTokenClassification",
}


def test_the_table_is_that_of_the_results():
    written = pooling_table.DOCUMENT.read_text(encoding="utf-8")
    assert written == pooling_table.document(), "run `python -m tests.support.pooling_table --document`"


@pytest.mark.parametrize("version", RESULTS)
def test_nothing_is_wrong_and_every_task_has_its_families(version):
    served: dict[str, int] = {}
    for tasks in RESULTS[version].values():
        for task, entry in tasks.items():
            assert entry["outcome"] != "wrong", entry
            served[task] = served.get(task, 0) + (entry["outcome"] in ("batched", "alone"))
    assert min(served[task] for task in SUFFIX) >= 12


@pytest.mark.parametrize("version", RESULTS)
def test_the_rules_say_what_the_runs_found(version):
    machine = Environment(has_triton=False, platform="cpu", packages={"transformers": version})
    for model_type, tasks in RESULTS[version].items():
        for task, entry in tasks.items():
            if entry["outcome"] == "untried":
                continue
            raw = {"architectures": [f"My{SUFFIX[task]}"], "model_type": model_type}
            if "pooling-multimodal" in entry["why"]:
                raw["vision_config"] = {}
            config = EngineConfig.from_flat("m", runner="pooling")
            verdict = verdict_for(config, ModelInfo.from_mapping(raw), machine, BOOK)
            assert bool(verdict.refusals) == (entry["outcome"] == "refused"), (model_type, task)
            alone = "row-by-row" in {found.consequence for found in verdict.consequences}
            assert alone == (entry["outcome"] == "alone"), (model_type, task)
