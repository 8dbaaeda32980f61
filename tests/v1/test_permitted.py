"""What the rules permit starts: random configurations; `python -m tests.support.permitted` tries many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.permitted import CHECKPOINTS, attempt, draw, pooling_models, use_small_host
from tests.support.tiny_models import TinyModels


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_host(patch)
        yield


@pytest.fixture(scope="module")
def models(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    generating = [tiny_models.path(family) for family in ("llama", "mistral", "gpt2", "lfm2", "mamba")]
    return [CHECKPOINTS / "qwen3", *generating, *pooling_models(tmp_path_factory.mktemp("pooling"))]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_the_rules_permit_starts_and_answers(
    data: st.DataObject, models: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    flat = draw(lambda values: data.draw(st.sampled_from(values)), models, folder)
    assert attempt(flat).outcome in ("refused", "runs")


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba", "lfm2", "gemma3"])
@pytest.mark.parametrize(
    "flat",
    [{"max_model_len": 1}, {"block_size": 1, "num_gpu_blocks_override": 2}, {"max_num_batched_tokens": 1}],
)
def test_the_least_sizes(family: str, flat: dict[str, int], tiny_models: TinyModels) -> None:
    tried = attempt({"model": str(tiny_models.path(family)), "device": "cpu", **flat})
    assert tried.outcome == "runs", tried
