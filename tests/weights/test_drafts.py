"""Weights of a draft in the life of its target's: read again, asleep, loaded by name, patched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.head_config import read_head_config
from dodona.runners.drafting.load_head import load_head
from dodona.runners.errors import EngineAsleepError
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2.drafting.load import TargetParts
from tests.support.tiny_models import TinyModels
from tests.v1.driver import make_runner
from tests.v1.test_draft_heads import QWEN3, TARGET, config_for, make_heads
from tests.v2 import drive as v2

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def directories(tiny_models: TinyModels, tmp_path: Path) -> tuple[Path, Path]:
    """A target, and a draft model of other weights."""
    for name, seed in (("target", 0), ("draft", 1)):
        shutil.copytree(tiny_models.path("llama", seed=seed), tmp_path / name)
    return tmp_path / "target", tmp_path / "draft"


@pytest.fixture
def llm(directories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    target, draft = directories
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 3}
    with LLM(
        target, device="cpu", max_model_len=64, num_gpu_blocks_override=32, speculative_config=speculative
    ) as made:
        yield made


def run(llm: LLM) -> tuple[list[int], float]:
    """The output, and which share of its drafts was accepted."""
    (output,) = llm.generate([{"prompt_token_ids": [5, 9, 17, 3]}], GREEDY, use_tqdm=False)
    (sequence,) = output.outputs
    return sequence.token_ids, sequence.num_accepted_tokens / sequence.num_draft_tokens


def test_a_draft_model_in_the_life_of_its_target(llm: LLM, directories: tuple[Path, Path]) -> None:
    target, draft = directories
    expected, share = run(llm)
    assert share < 1
    # Copies: the file is overwritten, and tensors are mapped from it.
    own = {name: tensor.clone() for name, tensor in load_file(draft / "model.safetensors").items()}
    shutil.copy(target / "model.safetensors", draft)
    llm.reload_weights()
    assert run(llm) == (expected, 1)  # the draft is the target

    llm.sleep(level=1)
    llm.wake_up()
    assert run(llm) == (expected, 1)

    llm.sleep(level=2)
    llm.wake_up()
    weights = load_file(target / "model.safetensors")
    llm.load_weights(weights.items())
    with pytest.raises(EngineAsleepError, match=r"tensors are missing, such as draft\."):
        run(llm)
    llm.load_weights((f"draft.{name}", tensor) for name, tensor in weights.items())
    assert run(llm) == (expected, 1)

    everything = {
        f"draft.{name}": (torch.arange(tensor.numel()), tensor.flatten()) for name, tensor in own.items()
    }
    llm.apply_sparse_weight_patches(everything)
    assert run(llm) == (expected, share)


def test_a_refused_draft_leaves_both_as_they_were(llm: LLM, directories: tuple[Path, Path]) -> None:
    target, draft = directories
    before = run(llm)
    for path in (target, draft):
        weights = load_file(path / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"].flip(0)
        if path == draft:
            del weights["lm_head.weight"]
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 weights of the model: lm_head\.weight"):
        llm.reload_weights()
    assert run(llm) == before


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("kind", ["qwen3-eagle3", "qwen3-peagle"])
def test_a_head_from_random_weights_to_its_own(kind: str, name: str, tmp_path: Path) -> None:
    make_heads(tmp_path)
    speculative: dict[str, Any] = config_for(tmp_path, kind)
    make = make_runner if name == "v1" else v2.make_runner
    runner: Any = make(QWEN3, load_format="dummy", speculative_config=speculative)
    runner.update_config({"load_config": {"load_format": "auto"}})
    runner.reload_weights()
    config = read_head_config(
        tmp_path / kind, method="eagle3", parallel=kind == "qwen3-peagle", target=TARGET
    )
    model = runner._loaded.model.model if name == "v1" else TargetParts(runner.loaded.model)
    head = load_head(tmp_path / kind, config, model, dtype=torch.float32, device=torch.device("cpu"))
    found = runner._loaded.drafting.weights()
    assert found.keys() == head.own_tensors().keys()
    for tensor_name, tensor in head.own_tensors().items():
        assert torch.equal(found[tensor_name], tensor)
    runner.sleep(level=2)
    runner.wake_up()
    missing = runner.missing_weights()
    assert {"draft.fc.weight", "draft.norm.weight", "model.norm.weight"} <= set(missing)
    runner.reload_weights()
    assert runner.missing_weights() == []
    for tensor_name, tensor in head.own_tensors().items():
        assert torch.equal(found[tensor_name], tensor)


def test_a_draft_model_on_v2(tiny_models: TinyModels, tmp_path: Path) -> None:
    small = {"head_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    target, draft = tiny_models.path("llama", **small), tmp_path / "draft"
    shutil.copytree(tiny_models.path("llama", seed=1, **small), draft)
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 2}
    runner = v2.make_runner(target, speculative_config=speculative)
    own = load_file(draft / "model.safetensors")
    own = {name: tensor.clone() for name, tensor in own.items()}
    weights = load_file(target / "model.safetensors")

    def check(expected: dict[str, torch.Tensor]) -> None:
        views = runner._weight_views().views
        assert views.keys() == weights.keys() | {f"draft.{name}" for name in expected}
        for name in expected:
            assert torch.equal(views[name], weights[name])
            assert torch.equal(views[f"draft.{name}"], expected[name])

    check(own)
    shutil.copy(target / "model.safetensors", draft)
    runner.reload_weights()
    check(weights)
    run = v2.generate(runner, [[5, 9, 17, 3]], max_tokens=6)
    stats = run.scheduler.draft_stats
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 0  # the draft is the target

    runner.sleep(level=2)
    runner.wake_up()
    runner.load_weights(weights.items())
    assert {name.partition(".")[0] for name in runner.missing_weights()} == {"draft"}
    runner.load_weights((f"draft.{name}", tensor) for name, tensor in weights.items())
    assert runner.missing_weights() == []
    again = v2.generate(runner, [[5, 9, 17, 3]], max_tokens=3)
    assert again.outputs[0] == run.outputs[0][:3]
    check(weights)
    runner.sleep(level=1)
    runner.wake_up()
    runner.apply_sparse_weight_patches(
        {f"draft.{name}": (torch.arange(tensor.numel()), tensor.flatten()) for name, tensor in own.items()}
    )
    check(own)

    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    del own["lm_head.weight"]
    save_file(own, draft / "model.safetensors", metadata={"format": "pt"})
    before = {name: tensor.clone() for name, tensor in runner._weight_views().views.items()}
    with pytest.raises(ConfigError, match=r"lack 1 weights of the model: lm_head\.weight"):
        runner.reload_weights(tmp_path)
    for name, tensor in runner._weight_views().views.items():
        assert torch.equal(tensor, before[name])
