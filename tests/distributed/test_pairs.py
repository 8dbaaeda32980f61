"""Some of the configurations of `tests.distributed.pairs`, which has all pairs of features in workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.pairs import Check, Choice, Models, refusal, threads


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Check]:
    with threads():
        yield Check(Models(tmp_path_factory.mktemp("pairs") / "models"))


@pytest.mark.parametrize(
    "choice",
    [
        Choice("qwen3_moe", "ep2 dp2", "suffix", "storage", "w4a16", "lora", "tight, cached"),
        Choice("deepseek-v3", "ep2 pcp2", "none", "offloading", "int8 at load", "lora", "tight"),
        Choice("qwen3-next", "pp2 dp2", "eagle3", "none", "w4a16", "lora", "tight"),
        Choice("gemma2", "tp2 pp2", "ngram", "memory", "int8 at load", "none", "tight"),
        Choice("gpt-oss", "pcp2 dp2", "peagle", "none", "none", "none", "tight, cached"),
    ],
    ids=str,
)
def test_tokens_are_one_ranks(check: Check, choice: Choice, tmp_path: Path) -> None:
    assert refusal(choice, check.models) is None
    check(choice, tmp_path / "kv", thorough=choice.model == "gpt-oss")
    assert len(check.ties) <= 1, check.ties
