"""Draft heads on V1: their two formats, what they propose, and which of them are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.heads import RECIPES, head_configuration, save_head
from checkpoints.train_heads import DepthAttention
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.head_config import read_head_config
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.drafting.head import DraftHead
from dodona.runners.drafting.load_head import load_head
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from tests.support.proposals import record_proposals
from tests.v1.driver import make_runner

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"
TARGET = ModelInfo.load(QWEN3)
DRAFTS = 4


def random_tensors(head: DraftHead) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(value.shape, generator=generator) * (0.3 if value.dim() > 1 else 0.1)
        + (1.0 if value.dim() == 1 else 0.0)
        for name, value in head.state_dict().items()
    }


def make_heads(folder: Path) -> None:
    """One of each kind with random weights; EAGLE3 once in both formats."""
    from transformers import AutoConfig

    target = AutoConfig.from_pretrained(QWEN3)
    targets = torch.randperm(380, generator=torch.Generator().manual_seed(3))[:320].sort().values
    for recipe in RECIPES.values():
        tensors: dict[str, torch.Tensor] = {}
        for name, form in recipe.folders.items():
            configuration = head_configuration(recipe, target, form=form, mask_token_id=379)
            save_head(folder / name, configuration, {}, targets, form=form)
            if not tensors:
                config = read_head_config(
                    folder / name, method="eagle3", parallel=recipe.parallel, target=TARGET
                )
                tensors = random_tensors(DraftHead(config))
            save_head(folder / name, configuration, tensors, targets, form=form)
    eagle = {
        "architectures": ["LlamaForCausalLMEagle"], "model_type": "llama", "hidden_size": 128,
        "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 380, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "eagle").mkdir()
    (folder / "eagle" / "config.json").write_text(json.dumps(eagle))
    config = read_head_config(folder / "eagle", method="eagle", parallel=False, target=TARGET)
    tensors = random_tensors(DraftHead(config, fc_bias=True))
    del tensors["lm_head.weight"]  # an EAGLE head has the target's
    save_file(tensors, folder / "eagle" / "model.safetensors")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    make_heads(folder)
    return folder


KINDS: Mapping[str, dict[str, Any]] = {
    "qwen3-eagle3": {"method": "eagle3"},
    "qwen3-eagle3-speculators": {"method": "eagle3"},
    "qwen3-peagle": {"method": "eagle3", "parallel_drafting": True},
    "eagle": {"method": "eagle"},
}


def config_for(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    return {"model": str(folder / kind), "num_speculative_tokens": DRAFTS, **KINDS[kind], **changes}


class DenseReference:
    """A head over whole sequences, without a cache, after transformers' own hidden states."""

    def __init__(self, folder: Path, kind: str, model: Any) -> None:
        method, parallel = KINDS[kind]["method"], KINDS[kind].get("parallel_drafting", False)
        config = read_head_config(folder / kind, method=method, parallel=parallel, target=TARGET)
        self.head = load_head(folder / kind, config, model, dtype=torch.float32, device=torch.device("cpu"))
        self.model = model
        self.hidden = HiddenStates(model, config.layer_ids)

    @torch.inference_mode()
    def drafts(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Greedy drafts after these tokens, of which the target has computed all but the last."""
        head = self.head
        ids = torch.tensor([list(token_ids)])
        self.model(input_ids=ids[:, :-1], use_cache=False)
        features = head.features(self.hidden.batched())
        positions = torch.arange(ids.shape[1] - 1)[None]
        attend = DepthAttention(head.scaling, positions)
        output = head(ids[:, 1:], features, positions, attend)
        found: list[int] = []
        for depth in range(1, count + 1):
            found.append(int(head.logits(output[:, -1]).argmax()))
            if head.head.is_parallel:
                tokens = torch.full_like(ids[:, 1:], head.head.mask_token_id)
                features = head.features(head.mask_hidden).expand(1, ids.shape[1] - 1, -1)
            else:
                tokens = torch.full_like(ids[:, 1:], found[-1])
                features = head.next_features(output)
            output = head(tokens, features, positions + depth, attend)
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_are_those_of_the_head_over_the_whole_text(
    kind: str, heads: Path, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_proposals(monkeypatch)
    prompts = [[5 + (i * 37 + j * j) % 370 for j in range(n)] for i, n in enumerate((1, 23, 9, 40))]
    params = SamplingParams(temperature=0.0, max_tokens=14, ignore_eos=True)
    sizes = {"max_num_batched_tokens": 16, "block_size": 4, "num_gpu_blocks_override": 24}
    with LLM(
        QWEN3, device="cpu", dtype="float32", max_model_len=64, enable_prefix_caching=False,
        speculative_config=config_for(heads, kind), **sizes,
    ) as llm:  # fmt: skip
        found = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    plain = reference(QWEN3)
    for prompt, output in zip(prompts, found, strict=True):
        tokens = output.outputs[0].token_ids
        best = plain.logits([*prompt, *tokens[:-1]]).argmax(-1)
        assert tokens == best[len(prompt) - 1 :].tolist()
    dense = DenseReference(heads, kind, plain.model)
    assert len(seen) > 20
    assert {len(drafts) for _, drafts in seen} >= {DRAFTS}
    for token_ids, drafts in seen[:: max(1, len(seen) // 24)]:
        assert drafts == dense.drafts(token_ids, len(drafts))


def test_both_formats_hold_the_same_head(heads: Path) -> None:
    names = ("qwen3-eagle3", "qwen3-eagle3-speculators")
    one, other = (load_file(heads / name / "model.safetensors") for name in names)
    assert "midlayer.hidden_norm.weight" in one
    assert "layers.0.hidden_norm.weight" in other
    configs = [read_head_config(heads / n, method="eagle3", parallel=False, target=TARGET) for n in names]
    assert configs[0].layer_ids == configs[1].layer_ids == (1, 2, 3)
    assert (configs[0].num_speculative_tokens, configs[1].num_speculative_tokens) == (None, 4)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3-eagle3", {"hidden_size": 64, "target_hidden_size": 64}, "target_hidden_size=64 does not fit"),
        ("qwen3-eagle3", {"vocab_size": 381}, "vocab_size=381 does not fit"),
        ("qwen3-eagle3", {"eagle_config": {}}, "usual layers 2, n/2 and n-3"),
        (
            "qwen3-eagle3-speculators",
            {"eagle_aux_hidden_state_layer_ids": [1, 2, 4]},
            "expected layers from 0 to 3",
        ),
        ("qwen3-eagle3-speculators", {"speculators_model_type": "dflash"}, "none of the heads"),
        ("qwen3-eagle3-speculators", {"speculators_model_type": "peagle"}, "parallel_drafting=true"),
        ("eagle", {"hidden_size": 256}, "hidden_size=256 does not fit"),
        ("qwen3-peagle", {"mask_token_id": 380}, "380 is no token of a vocabulary of 380"),
        ("qwen3-peagle", {"mask_token_id": 10**30}, "no token of a vocabulary"),
    ],
)
def test_a_head_that_does_not_fit_is_named_before_anything_loads(
    kind: str,
    changes: dict[str, Any],
    message: str,
    heads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {**json.loads((heads / kind / "config.json").read_text()), **changes}
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "config.json").write_text(json.dumps(config))
    (tmp_path / kind / "model.safetensors").write_bytes((heads / kind / "model.safetensors").read_bytes())
    runner = make_runner(QWEN3, load=False, speculative_config=config_for(tmp_path, kind))
    monkeypatch.setattr(runner, "_read_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=message) as caught:
        runner.load_model()
    assert str(tmp_path / kind) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "eagle3", "num_speculative_tokens": 2}, "speculative_config.model is not set"),
        ({"method": "eagle3", "kind": "qwen3-eagle3"}, "num_speculative_tokens is not set"),
        ({"method": "eagle", "kind": "qwen3-eagle3-speculators"}, "method='eagle3'"),
        (
            {"method": "eagle3", "kind": "qwen3-eagle3", "parallel_drafting": True},
            "needs a P-EAGLE head",
        ),
        ({"method": "eagle3", "kind": "qwen3-peagle"}, "set speculative_config.parallel_drafting=true"),
    ],
)
def test_a_configuration_that_does_not_fit_its_head(
    config: dict[str, Any], message: str, heads: Path
) -> None:
    kind = config.pop("kind", None)
    if kind is not None:
        config = {"model": str(heads / kind), **config}
    runner = make_runner(QWEN3, load=False, speculative_config=config)
    with pytest.raises(ConfigError, match=message):
        runner.load_model()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("norm.weight"), "lacks tensors of the head: norm.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "does not have: extra"),
        (lambda tensors: tensors.update({"fc.weight": torch.zeros(128, 128)}), "other shapes"),
        (lambda tensors: tensors.update(d2t=torch.full((320,), 100)), "'d2t' is no map"),
        (lambda tensors: tensors.pop("d2t"), "no tensor 'd2t'"),
    ],
)
def test_weights_that_are_not_the_heads(change: Any, message: str, heads: Path, tmp_path: Path) -> None:
    source = heads / "qwen3-eagle3-speculators"
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    config = read_head_config(source, method="eagle3", parallel=False, target=TARGET)
    with pytest.raises(ConfigError, match=message):
        load_head(
            tmp_path, config, torch.nn.Module(), dtype=torch.float32, device=torch.device("cpu")
        )  # needs nothing of the target


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 10**5, "num_hidden_layers=100000 is more than the target has, 3"),
        ("draft_vocab_size", 10**9, "draft_vocab_size=1000000000 is more than the target has, 380"),
        ("intermediate_size", 10**12, "other shapes than config.json says: layers.0.mlp.down_proj.weight"),
        ("head_dim", 10**12, "other shapes than config.json says: layers.0.self_attn.k_proj.weight"),
        ("hidden_act", "many", "transformers and torch can't make these layers: KeyError: 'many'"),
        ("num_attention_heads", 0, "transformers and torch can't make these layers"),
    ],
)
def test_sizes_of_a_head_are_compared_before_memory_is_taken(
    field: str, value: object, message: str, heads: Path, tmp_path: Path
) -> None:
    source = heads / "qwen3-eagle3"
    config = {**json.loads((source / "config.json").read_text()), field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        load_head(
            tmp_path,
            read_head_config(tmp_path, method="eagle3", parallel=False, target=TARGET),
            torch.nn.Module(),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
