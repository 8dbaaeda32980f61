"""docs/models.md: generated from results, which agree with the rules, and with a sample that is run anew."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import transformers

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.conditions import comparisons
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.known_models import release
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.row_by_row import UNSERVED, UNSERVED_ARCHITECTURES
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import load_rulebook
from tests.support import models_table
from tests.support.sweep import run_apart

RESULTS = {
    file.stem.removeprefix("transformers-"): json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(models_table.RESULTS.glob("transformers-*.json"))
}
BOOK = load_rulebook("dodona")
SAMPLE = ("llama", "qwen2_moe", "deepseek_v3", "jamba", "roberta", "bloom", "gpt_neo", "rwkv", "xlnet")


def test_the_document_is_that_of_the_results():
    written = models_table.DOCUMENT.read_text(encoding="utf-8")
    assert written == models_table.document(), "run `python -m tests.support.models_table --document`"


@pytest.mark.parametrize("version", RESULTS)
def test_nothing_is_wrong_and_most_types_are_served(version):
    outcomes = [entry["outcome"] for entry in RESULTS[version].values()]
    assert "wrong" not in outcomes
    served = sum(outcome == "packed" or outcome.startswith("rows") for outcome in outcomes)
    assert served >= 0.92 * len(outcomes)


@pytest.mark.parametrize("version", RESULTS)
def test_the_rules_say_what_the_runs_found(version):
    """The book says of a config.json of each type what its run said: row by row, refused, or neither."""
    machine = Environment(has_triton=False, platform="cpu", packages={"transformers": version})
    for model_type, entry in RESULTS[version].items():
        raw = models_table.config_file(model_type, entry["architecture"])
        if entry["language_model"] != model_type:
            raw["text_config"] = {"model_type": entry["language_model"]}
        verdict = verdict_for(EngineConfig.from_flat("m"), ModelInfo.from_mapping(raw), machine, BOOK)
        refused = {reason.rule for reason in verdict.refusals}
        rows = {found.consequence for found in verdict.consequences} & {"row-by-row"}
        outcome = entry["outcome"]
        if outcome != "untried":
            by_type = refused & set(models_table.BY_TYPE)
            assert bool(by_type) == (outcome == "refused"), model_type
            assert bool(rows) == outcome.startswith("rows") or by_type, model_type


@pytest.mark.parametrize(("older", "newer"), list(pairwise(RESULTS)))
def test_types_that_come_later_are_refused_by_name(older, newer):
    """Of two versions with results: what the later one adds is refused on the earlier one, and only that."""
    assert RESULTS[older].keys() <= RESULTS[newer].keys()
    added = RESULTS[newer].keys() - RESULTS[older].keys()
    assert added
    for model_type in added:
        entry = RESULTS[newer][model_type]
        info = ModelInfo.from_mapping({"architectures": [entry["architecture"]], "model_type": model_type})
        machine = Environment(has_triton=False, platform="cpu", packages={"transformers": older})
        verdict = verdict_for(EngineConfig.from_flat("m"), info, machine, BOOK)
        (refusal,) = [reason for reason in verdict.refusals if reason.rule == "transformers-version"]
        assert not refusal.unknown
        assert all(word in refusal.feature for word in (model_type, info.transformers_since, older))
        assert release(older) < release(info.transformers_since) <= release(newer)


def test_the_rule_names_the_types_that_are_not_served():
    found = {c.fact: c.value for c in comparisons(BOOK.by_id["model-family"].when)}
    assert found.pop("model_config.runner_type") == "generate"
    assert {fact: set(value) for fact, value in found.items()} == {
        "model_config.model_type": set(UNSERVED),
        "model_config.architectures": set(UNSERVED_ARCHITECTURES),
    }


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_runs_as_the_results_say(model_type):
    found = run_apart(model_type, models_table.try_family)
    assert found["outcome"] not in ("wrong", "untried"), found
    if transformers.__version__ in RESULTS:
        assert found["outcome"] == RESULTS[transformers.__version__][model_type]["outcome"], found
