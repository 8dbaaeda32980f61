"""docs/parallel-models.md: generated from results, which agree with rules and with V1's own lists, and with a
sample that is run anew."""

from __future__ import annotations

import pytest
import transformers

from dodona.oracle.language.conditions import comparisons
from dodona.oracle.systems.books import load_rulebook
from dodona.runners.v1 import parallel_families
from tests.support import ranks_table
from tests.support.sweep import run_apart

RESULTS = ranks_table.all_results()
BOOK = load_rulebook("dodona")
SAMPLE = ("deepseek_v2", "granite_swa", "longcat_flash", "qwen3_next", "olmoe")
"""Latent attention, sinks, experts without weights, inner states, experts without a plan of layers."""


def test_the_document_is_that_of_the_results() -> None:
    written = ranks_table.DOCUMENT.read_text(encoding="utf-8")
    assert written == ranks_table.document(), "run `python -m tests.support.ranks_table --document`"


@pytest.mark.parametrize("rule", ranks_table.FAMILIES)
def test_rules_and_capabilities_list_what_ran(rule: str) -> None:
    names, layout = ranks_table.FAMILIES[rule]
    own = list(getattr(parallel_families, names))
    assert own == sorted(set.union(*(ranks_table.served(found, layout) for found in RESULTS.values())))
    compared = {found.fact: found.value for found in comparisons(BOOK.by_id[rule].when)}
    assert list(compared["model_config.architectures"]) == own


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_again(model_type: str) -> None:
    found = run_apart(model_type, ranks_table.try_type)
    assert not any(outcome.startswith(("wrong", "untried")) for outcome in found.values()), found
    if transformers.__version__ in RESULTS:
        entry = RESULTS[transformers.__version__][model_type]
        assert found == {name: entry[name] for name in ranks_table.LAYOUTS}
