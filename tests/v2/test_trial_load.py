"""What V2 finds of a model without the values of its weights, beside what it finds when it loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.distributed.imagined import first_of_stage
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.limits import resolve_limits
from dodona.runners.meta_device import on_meta
from dodona.runners.v2.pooling.runner import V2PoolingRunner
from dodona.runners.v2.runner import V2Runner
from tests.support import damaged_models
from tests.support.tiny_models import TinyModels
from tests.v2.drive import DEVICE, make_runner

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
HEADS = ("qwen3-eagle3", "qwen3-eagle3-speculators")


def found(path: Path, **flat: Any) -> str | None:
    """What a trial load says."""
    runner = make_runner(path, load=False, **flat)
    try:
        with on_meta():
            runner.try_load()
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
@pytest.mark.parametrize(
    "name", ["qwen3", "llama", "qwen3-w4a16", "qwen3-gptq", "qwen3-fp8", "qwen3-w8a8-int8"]
)
def test_nothing_is_found_in_a_whole_model(name: str, load_format: str) -> None:
    assert found(CHECKPOINTS / name, load_format=load_format) is None


@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_found_with_a_draft_head(head: str) -> None:
    speculative = {"model": str(CHECKPOINTS / head), "num_speculative_tokens": 2}
    assert found(CHECKPOINTS / "qwen3", speculative_config=speculative) is None


def test_a_pooling_model_is_tried_too(tiny_models: TinyModels) -> None:
    path = tiny_models.path("qwen3")
    config, model = EngineConfig.from_flat(str(path), device=DEVICE, runner="pooling"), ModelInfo.load(path)
    with on_meta():
        V2PoolingRunner(config, model, resolve_limits(config, model)).try_load()


@pytest.mark.parametrize(("name", "ranks"), [("qwen3", 2), ("qwen3", 4), ("qwen3-gptq", 2)])
def test_a_rank_of_several_has_its_share(name: str, ranks: int) -> None:
    path = CHECKPOINTS / name
    config, model = EngineConfig.from_flat(str(path), device=DEVICE), ModelInfo.load(path)
    mesh = first_of_stage(RankSizes(pipeline=1, context=1, tensor=ranks), 0)
    with on_meta():
        runner = V2Runner(config, model, resolve_limits(config, model), mesh).try_load()
    heads = model.num_key_value_heads or 0
    assert {layer.num_kv_heads for layer in runner.get_kv_cache_spec().layers} == {max(1, heads // ranks)}
    assert {layer.num_kv_heads for layer in runner.get_kv_parts()[0].layers} == {heads}


@pytest.mark.parametrize(("name", "tensor"), [("llama", "k_proj.weight"), ("qwen3-w4a16", "weight_scale")])
@pytest.mark.parametrize("lost", [True, False])
def test_a_tensor_that_does_not_fit_is_found_in_the_words_of_a_load(
    name: str, tensor: str, lost: bool, tmp_path: Path
) -> None:
    path = damaged_models.copy(CHECKPOINTS / name, tmp_path / name)
    tensors = load_file(path / damaged_models.WEIGHTS)
    which = next(each for each in sorted(tensors) if each.endswith(tensor))
    whole = tensors.pop(which)
    if not lost:
        tensors[which] = whole[:-1].clone()
    save_file(tensors, path / damaged_models.WEIGHTS)
    with pytest.raises(ConfigError) as loaded:
        make_runner(path)
    assert found(path) == str(loaded.value)
