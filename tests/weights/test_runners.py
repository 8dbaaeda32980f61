"""Weights of loaded runners, V1 and V2 alike: reloaded, patched, loaded by name, asleep and awake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.quantize import quantize_checkpoint
from dodona.oracle.errors import ConfigError
from dodona.runners.errors import EngineAsleepError, InvalidRequestError
from tests.support.adapters import write_adapter
from tests.support.tiny_models import TinyModels
from tests.v1 import driver as v1
from tests.v2 import drive as v2

PROMPTS = [[5, 9, 17, 3, 8, 1, 2], [4]]


def make(name: str, path: Path, **flat: Any) -> Any:
    return v1.make_runner(path, **flat) if name == "v1" else v2.make_runner(path, **flat)


def tokens(runner: Any) -> list[list[int]]:
    if runner.name == "v1":
        return [job.output for job in v1.Driver(runner).generate(PROMPTS, 4)]
    return v2.generate(runner, PROMPTS, max_tokens=4).outputs


def addresses(runner: Any) -> dict[str, int]:
    return {name: view.data_ptr() for name, view in runner._weight_views().views.items()}


def no_kv_cache(runner: Any) -> bool:
    return (runner if runner.name == "v1" else runner.steps)._ready is None


both = pytest.mark.parametrize("name", ["v1", "v2"])


@pytest.fixture
def copy(tiny_models: TinyModels, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model's directory that a test may spoil."""

    def get(
        family: str = "llama", change: Callable[[dict[str, torch.Tensor]], Any] = len, **more: Any
    ) -> Path:
        path = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_models.path(family, **more), path)
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return get


@both
def test_from_random_weights_to_the_models_own(name: str, copy: Callable[..., Path]) -> None:
    path = copy(head_dim=16)
    real = tokens(make(name, path))
    runner = make(name, path, load_format="dummy")
    assert tokens(runner) != real
    before = addresses(runner)
    with pytest.raises(ConfigError, match="load_format is 'dummy', which reads no files"):
        runner.reload_weights(path)
    runner.update_config({"load_config": {"load_format": "auto"}})
    runner.reload_weights()
    assert tokens(runner) == real
    assert addresses(runner) == before


@both
def test_reload_from_elsewhere_and_back(name: str, copy: Callable[..., Path]) -> None:
    path, other = copy("llama", head_dim=16), copy("llama", head_dim=16, seed=1)
    (other / "config.json").unlink()
    runner = make(name, path)
    before, first = addresses(runner), tokens(runner)
    runner.reload_weights(str(other))
    changed = tokens(runner)
    assert changed != first
    (other / "config.json").write_bytes((path / "config.json").read_bytes())
    assert changed == tokens(make(name, other))
    runner.reload_weights()
    assert tokens(runner) == first
    assert addresses(runner) == before


@both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), r"model\.norm\.weight"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj"),
    ],
    ids=["missing", "shape", "fused"],
)
def test_a_refused_reload_leaves_the_old_weights(
    name: str, copy: Callable[..., Path], change: Any, words: str
) -> None:
    path, spoilt = copy(head_dim=16), copy(change=change, head_dim=16, seed=1)
    runner = make(name, path)
    before = {each: view.clone() for each, view in runner._weight_views().views.items()}
    with pytest.raises(ConfigError, match=words) as caught:
        runner.reload_weights(spoilt)
    assert str(spoilt) in str(caught.value)
    assert all(torch.equal(view, before[each]) for each, view in runner._weight_views().views.items())


@pytest.mark.parametrize("spoil", [dict.pop, lambda t, name: t.update({name: torch.ones(2, 2)})])
def test_an_experts_weight_that_is_not_as_it_must_be_is_named(spoil: Any, copy: Callable[..., Path]) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    path, spoilt = copy("qwen3-moe"), copy("qwen3-moe", change=lambda t: spoil(t, name), seed=1)
    runner = make("v1", path)
    before = {each: view.clone() for each, view in runner._weight_views().views.items()}
    with pytest.raises(
        ConfigError, match=r"1 weights of experts .*: model\.layers\.1\.mlp\.experts\.2\.up_p"
    ) as caught:
        runner.reload_weights(spoilt)
    assert str(spoilt) in str(caught.value)
    assert all(torch.equal(view, before[each]) for each, view in runner._weight_views().views.items())


@both
def test_other_models_are_refused_before_anything_is_read(name: str, copy: Callable[..., Path]) -> None:
    path, other = copy(head_dim=16), copy(head_dim=16, seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    runner = make(name, path)
    with pytest.raises(ConfigError, match=r"field 'rms_norm_eps' is 0\.001, and the running model has 1e-06"):
        runner.reload_weights(other)
    with pytest.raises(ConfigError, match="no such directory"):
        runner.reload_weights(path / "nowhere")
    with pytest.raises(ConfigError, match="path must be a directory, got 7"):
        runner.reload_weights(7)


def patches_of(weights: dict[str, torch.Tensor], seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Some elements of every tensor, with new values."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in weights.items():
        places = torch.randperm(tensor.numel(), generator=generator)[: max(1, tensor.numel() // 7)]
        found[name] = (places, torch.randn(len(places), generator=generator) / 4)
    return found


def patch_file(weights: dict[str, torch.Tensor], seed: int) -> None:
    for name, (places, values) in patches_of(weights, seed).items():
        weights[name] = weights[name].flatten().index_put((places,), values).view(weights[name].shape)


PATCHED = [
    ("v1", "llama", {}),
    ("v1", "llama", {"tie_word_embeddings": True}),
    ("v1", "qwen3-moe", {}),
    ("v1", "mixtral", {}),
    ("v1", "gpt2", {}),
    ("v2", "llama", {"head_dim": 16}),
    ("v2", "qwen3", {"tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("name", "family", "more"), PATCHED)
def test_patching_equals_a_patched_checkpoint(
    name: str, family: str, more: dict[str, Any], copy: Callable[..., Path]
) -> None:
    path = copy(family, **more)
    patched = copy(family, lambda weights: patch_file(weights, 3), **more)
    runner = make(name, path)
    before = addresses(runner)
    runner.apply_sparse_weight_patches(patches_of(load_file(path / "model.safetensors"), 3))
    written = {each: view.clone() for each, view in runner._weight_views().views.items()}
    assert addresses(runner) == before
    assert tokens(runner) == tokens(make(name, patched))
    runner.reload_weights(patched)
    assert all(torch.equal(view, written[each]) for each, view in runner._weight_views().views.items())


@pytest.mark.parametrize(("name", "family", "more"), PATCHED)
def test_loading_by_name_equals_the_checkpoint(
    name: str, family: str, more: dict[str, Any], copy: Callable[..., Path]
) -> None:
    path, other = copy(family, **more), copy(family, seed=1, **more)
    runner = make(name, path)
    before = addresses(runner)
    runner.load_weights(load_file(other / "model.safetensors").items())
    assert addresses(runner) == before
    assert tokens(runner) == tokens(make(name, other))


@both
def test_a_trainers_state_dict_has_tied_tensors_twice(name: str, copy: Callable[..., Path]) -> None:
    more = {"head_dim": 16, "tie_word_embeddings": True}
    path, other = copy("llama", **more), copy("llama", seed=1, **more)
    runner = make(name, path)
    trainer = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).state_dict()
    assert trainer["lm_head.weight"].data_ptr() == trainer["model.embed_tokens.weight"].data_ptr()
    runner.load_weights(trainer.items())
    assert torch.equal(runner._weight_views().views["model.embed_tokens.weight"], trainer["lm_head.weight"])


@both
def test_bad_patches_name_the_tensor(name: str, copy: Callable[..., Path]) -> None:
    runner = make(name, copy("llama", head_dim=16, tie_word_embeddings=True))
    before = {each: view.clone() for each, view in runner._weight_views().views.items()}
    good = (torch.tensor([0]), torch.ones(1))
    for wrong, words in (
        ("model.norm.weights", "did you mean 'model.norm.weight'"),
        ("lm_head.weight", r"tied to 'model\.embed_tokens\.weight'"),
        ("__class__", "the model has no tensor"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            runner.apply_sparse_weight_patches({"model.norm.weight": good, wrong: good})
        with pytest.raises(InvalidRequestError, match=words):
            runner.load_weights([("model.norm.weight", torch.zeros(32)), (wrong, torch.ones(1))])
    assert all(torch.equal(view, before[each]) for each, view in runner._weight_views().views.items())


@both
def test_a_reload_without_the_output_layer_that_the_running_model_has(
    name: str, copy: Callable[..., Path]
) -> None:
    """config.json ties the two, the running model's checkpoint has an output layer of its own all the same,
    and the new one has not."""

    def untie(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()

    path = copy(head_dim=16, change=untie, tie_word_embeddings=True)
    tied = copy(head_dim=16, tie_word_embeddings=True, seed=3)
    runner = make(name, path)
    before = tokens(runner)
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        runner.reload_weights(tied)
    assert tokens(runner) == before


@both
def test_an_adapter_in_the_models_folder_is_left_alone(name: str, copy: Callable[..., Path]) -> None:
    path = copy(head_dim=16)
    before = tokens(make(name, path))
    write_adapter(path, {"model.layers.0.self_attn.q_proj": (32, 64)}, spread=3.0)
    runner = make(name, path)
    assert tokens(runner) == before
    runner.reload_weights(path)
    assert tokens(runner) == before


@both
def test_sleep_level_1_brings_the_same_tokens_back(name: str, copy: Callable[..., Path]) -> None:
    runner = make(name, copy(head_dim=16))
    first = tokens(runner)
    runner.sleep()
    assert no_kv_cache(runner)
    with pytest.raises(EngineAsleepError, match="asleep already"):
        runner.sleep(2)
    with pytest.raises(EngineAsleepError, match="reload_weights: the weights are asleep"):
        runner.reload_weights()
    runner.wake_up()
    runner.wake_up()
    assert tokens(runner) == first


@both
def test_sleep_level_2_drops_the_weights(name: str, copy: Callable[..., Path]) -> None:
    path = copy(head_dim=16)
    runner = make(name, path)
    first = tokens(runner)
    runner.load_weights(load_file(path / "model.safetensors").items())
    runner.sleep(level=2)
    with pytest.raises(EngineAsleepError, match="load_weights: the weights are asleep"):
        runner.load_weights([])
    with pytest.raises(InvalidRequestError, match="tags must be a list out of"):
        runner.wake_up(["weight"])
    runner.wake_up(["weights"])
    assert no_kv_cache(runner)
    runner.reload_weights()
    runner.wake_up(["kv_cache"])
    assert tokens(runner) == first
    for wrong in (0, 3, True, "1"):
        with pytest.raises(InvalidRequestError, match="level must be one of"):
            runner.sleep(wrong)


@both
def test_dropped_weights_give_their_memory_back_and_are_not_numbers(
    name: str, copy: Callable[..., Path]
) -> None:
    runner = make(name, copy(head_dim=16), load_format="dummy")
    views = runner._weight_views().views
    runner.sleep(level=2)
    assert all(view.untyped_storage().nbytes() == 0 for view in views.values())
    runner.wake_up()
    assert all(view.isnan().all() for view in views.values())
    runner.reload_weights()
    assert not any(view.isnan().any() for view in views.values())


# --- Quantized layers on V1


@pytest.fixture(scope="module")
def quantized(
    tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """A quantized tiny Qwen3 by format and seed."""

    def get(form: str, seed: int) -> Path:
        path = tmp_path_factory.mktemp("quantized") / f"{form}-{seed}"
        sizes = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.15}
        quantize_checkpoint(tiny_models.path("qwen3", seed=seed, **sizes), path, form, prompts=PROMPTS)
        return path

    return get


@pytest.mark.parametrize("form", ["w4a16-asym", "fp8", "gptq-act-order"])
def test_quantized_weights_are_reloaded_in_place(form: str, quantized: Callable[[str, int], Path]) -> None:
    first, second = quantized(form, 0), quantized(form, 1)
    runner = make("v1", first)
    state = runner._loaded.model.model.state_dict()
    held = {each: tensor.data_ptr() for each, tensor in state.items()}
    before = tokens(runner)
    runner.reload_weights(second)
    assert {each: t.data_ptr() for each, t in runner._loaded.model.model.state_dict().items()} == held
    changed = tokens(runner)
    assert before != changed == tokens(make("v1", second))
    layer = "model.layers.0.self_attn.q_proj"
    for wrong in (f"{layer}.data", f"{layer}.weight_packed", f"{layer}.weight"):
        with pytest.raises(InvalidRequestError, match="belongs to a quantized layer"):
            runner.apply_sparse_weight_patches({wrong: (torch.tensor([0]), torch.ones(1))})
    runner.apply_sparse_weight_patches({"model.norm.weight": (torch.tensor([0]), torch.ones(1))})
    runner.sleep(level=2)
    runner.wake_up()
    missing = runner.missing_weights()
    assert f"{layer}.scales" in missing
    assert "model.norm.weight" in missing
    runner.load_weights([("model.norm.weight", torch.ones(64))])
    assert "model.norm.weight" not in runner.missing_weights()
    runner.reload_weights()
    assert runner.missing_weights() == []
    assert tokens(runner) == before


@both
def test_after_a_sleep_of_level_2_each_tensor_must_be_loaded(name: str, copy: Callable[..., Path]) -> None:
    path = copy(head_dim=16)
    runner = make(name, path)
    first = tokens(runner)
    assert runner.missing_weights() == []
    runner.sleep(level=2)
    runner.wake_up()
    weights = list(load_file(path / "model.safetensors").items())
    assert set(runner.missing_weights()) >= {each for each, _ in weights}
    runner.load_weights(weights[:9])
    assert set(runner.missing_weights()) == {each for each, _ in weights[9:]}
    runner.load_weights(weights[9:])
    assert runner.missing_weights() == []
    assert tokens(runner) == first
