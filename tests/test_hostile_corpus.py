"""The corpus of hostile input (tests/support/hostile.py): each case is answered or ends in a named error."""

from __future__ import annotations

import os

import pytest

from tests.support.hostile import GOOD, corpus, outcome, prepare

CASES = list(corpus())
KINDS = sorted({case.kind for case in CASES})
MOST = 20
"""Cases of a kind that CI runs, spread over the kind; the whole corpus takes many minutes."""
FEWER = {
    "KV connector": 5, "draft folder": 5, "layers of an adapter": 5, "suffix lookup": 5,
    "quantization library": 6, "several devices": 8, "package version": 8,
    "header of weights": 5, "index of weights": 8, "trial load": 10,
    "deployment that grows": 10, "generation_config.json": 8, "field of config.json": 8, "tokenizer": 10,
    "chat template": 10, "structured output": 10, "folder of a connector": 4, "large adapter": 5,
}  # fmt: skip
"""The same for kinds whose cases take longer."""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a forked process")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_each_case_is_answered_or_a_named_error(kind: str) -> None:
    prepare()
    cases = [case for case in CASES if case.kind == kind]
    cases = cases[:: -(-len(cases) // FEWER.get(kind, MOST))]
    found = {case.name: outcome(case) for case in cases}
    assert {name: said for name, said in found.items() if said not in GOOD} == {}
