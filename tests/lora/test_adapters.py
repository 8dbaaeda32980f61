"""Reading adapters: what PEFT's files say, and what is refused by name. And adapters in the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona import LLM, LoRARequest, SamplingParams
from dodona.oracle.config.sections import LoRAConfig
from dodona.oracle.errors import ConfigError
from dodona.runners.errors import InvalidRequestError
from dodona.runners.lora.adapter import Adapter, read_adapter
from dodona.runners.lora.peft_config import PeftConfig
from dodona.runners.lora.registry import AdapterRegistry
from dodona.runners.lora.target import LoRATarget
from tests.support.adapters import write_adapter
from tests.support.fake_runner import FakeRunner, adapted, fake_verdict, solo_run

LAYERS = {"model.layers.0.q_proj": (8, 6), "model.layers.1.q_proj": (8, 6), "model.layers.1.up": (8, 12)}
TARGETS = {name: LoRATarget(*sizes) for name, sizes in LAYERS.items()}
A = "base_model.model.model.layers.0.q_proj.lora_A.weight"


def read(path: Path, max_lora_rank: int = 8) -> Adapter:
    return read_adapter(LoRARequest("name", 1, str(path)), TARGETS, max_lora_rank=max_lora_rank)


def test_layers_and_their_scales(tmp_path: Path) -> None:
    adapter = read(write_adapter(tmp_path, LAYERS, r=4, lora_alpha=6, alpha_pattern={"up": 3}))
    assert {name: w.scale for name, w in adapter.layers.items()} == {
        "model.layers.0.q_proj": 1.5, "model.layers.1.q_proj": 1.5, "model.layers.1.up": 0.75
    }  # fmt: skip
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(adapter.layers["model.layers.0.q_proj"].a, stored[A])


def test_the_key_is_that_of_what_is_computed(tmp_path: Path) -> None:
    first = read(write_adapter(tmp_path / "a", LAYERS)).key
    assert read(write_adapter(tmp_path / "b", LAYERS, lora_dropout=0.5)).key == first
    others = [
        write_adapter(tmp_path / "c", LAYERS, seed=1),
        write_adapter(tmp_path / "d", LAYERS, lora_alpha=9),
        write_adapter(tmp_path / "e", dict(list(LAYERS.items())[:2])),
    ]
    assert len({first, *(read(path).key for path in others)}) == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "field 'peft_type': expected 'LORA', got 'IA3'"),
        ({"use_dora": True}, "field 'use_dora': not supported"),
        ({"modules_to_save": ["lm_head"]}, "field 'modules_to_save': not supported"),
        ({"lora_bias": True}, "field 'lora_bias': not supported"),
        ({"bias": "all"}, "field 'bias': not supported"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "field 'target_parameters': not supported"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "'init_lora_weights': not supported: 'pissa_niter_4' changes",
        ),
        ({"trainable_token_indices": [1]}, "field 'trainable_token_indices': not supported"),
        ({"alora_invocation_tokens": [1]}, "field 'alora_invocation_tokens': not supported"),
        ({"use_something_new": {"a": 1}}, "field 'use_something_new': not known"),
        ({"r": 0}, "field 'r': expected a rank from 1, got 0"),
        ({"rank_pattern": {"up": "4"}}, r"field 'rank_pattern\.up': expected a rank"),
        ({"lora_alpha": float("nan")}, "field 'lora_alpha': expected a number"),
        ({"rank_pattern": [4]}, "field 'rank_pattern': expected an object"),
        (
            {"alpha_pattern": {"(a+)+b": 4}},
            r"field 'alpha_pattern': the expression '\(a\+\)\+b': it repeats a group",
        ),
        ({"alpha_pattern": {"((": 4}}, "field 'alpha_pattern': the expression"),
        ({"layers_to_transform": ["1"]}, "field 'layers_to_transform': expected numbers"),
        ({"target_modules": {"q": 1}}, "field 'target_modules': expected a list"),
        ({"r": 9, "lora_alpha": 9}, "has rank 9, over max_lora_rank=8; raise max_lora_rank"),
        (
            {"target_modules": ["up"]},
            "an adapter of 'model.layers.0.q_proj': .* does not name it as a target",
        ),
        ({"layers_to_transform": [0]}, "an adapter of 'model.layers.1.q_proj': .* does not name it"),
        ({"exclude_modules": ["up"]}, "an adapter of 'model.layers.1.up': .* does not name it"),
        ({"exclude_modules": r".*\.1\.up"}, "an adapter of 'model.layers.1.up': .* does not name it"),
        ({"exclude_modules": "(a+)+b"}, "field 'exclude_modules': the expression .* repeats a group"),
    ],
)
def test_a_configuration_that_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read(write_adapter(tmp_path, LAYERS, **fields))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(A), "lacks the tensor model.layers.0.q_proj.lora_A.weight"),
        (lambda t: t.update({A: torch.ones(4, 7)}), r"is F32 of shape \[4, 7\], expected shape \[4, 8\]"),
        (lambda t: t.update({A: torch.ones(5, 8)}), r"of shape \[5, 8\], expected shape \[4, 8\]"),
        (lambda t: t.update({A: torch.ones(4, 8, dtype=torch.int8)}), "is I8 of shape"),
        (lambda t: t.update({A: torch.full((4, 8), torch.nan)}), "has values that are not finite"),
        (
            lambda t: t.update({A.replace("_A", "_B"): torch.full((6, 4), 3e38)}),
            r"lora_B\.weight times the scale 2 has values that are not finite in torch\.float32",
        ),
        (lambda t: t.update({A.replace(".0.", ".7."): torch.ones(4, 8)}), "no linear layer of this name"),
        (lambda t: t.update({A.replace("q_proj", "mlp.experts.3.w1"): torch.ones(4, 8)}), "experts have no"),
        (lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(1)}), "not supported"),
        (lambda t: t.update({"base_model.model.e.lora_embedding_A": torch.ones(1)}), "lora_embedding_A"),
        (
            lambda t: [t.pop(name) for name in list(t) if "1.q_proj" in name],
            "lacks the adapter of 'model.layers.1",
        ),
        (lambda t: t.clear(), "has no tensors"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(write_adapter(tmp_path, LAYERS, change=change))


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        read(tmp_path)
    path = write_adapter(tmp_path, LAYERS)
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        read(path)
    weights.unlink()
    (path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"adapter_model\.bin is not read: save it as safetensors"):
        read(path)
    (path / "adapter_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        read(path)


def test_a_pattern_is_matched_as_peft_does(tmp_path: Path) -> None:
    write_adapter(tmp_path, LAYERS, rank_pattern={"1.up": 2, "up": 3, "q_proj": 5})
    config = PeftConfig.load(tmp_path)
    names = ["model.layers.1.up", "model.layers.11.up", "model.layers.0.q_proj", "a.b_q_proj", "up"]
    assert [config.rank(name) for name in names] == [2, 3, 5, 4, 3]


def test_layers_that_an_expression_excludes_need_no_adapter(tmp_path: Path) -> None:
    layers = {name: sizes for name, sizes in LAYERS.items() if name != "model.layers.1.q_proj"}
    targets = sorted({name.rpartition(".")[2] for name in LAYERS})
    path = write_adapter(tmp_path, layers, target_modules=targets, exclude_modules=r"model\..*\.1\.q_.*")
    assert read(path).layers.keys() == layers.keys()
    # PEFT takes a string as an expression over the whole name, not as the end of a name.
    write_adapter(tmp_path, layers, target_modules=targets, exclude_modules="1.q_proj")
    with pytest.raises(ConfigError, match=r"lacks the adapter of 'model\.layers\.1\.q_proj'"):
        read(path)


def test_requests_for_adapters_are_checked() -> None:
    for name, number, path in (("", 1, "p"), ("n", 0, "p"), ("n", True, "p"), ("n", "1", "p"), ("n", 1, "")):
        with pytest.raises(InvalidRequestError, match="expected"):
            LoRARequest(name, number, path)  # type: ignore[arg-type]
    assert LoRARequest("n", 1, Path("p")).lora_path == "p"  # type: ignore[arg-type]


def test_the_registry_keeps_what_was_used_last(tmp_path: Path) -> None:
    paths = [str(write_adapter(tmp_path / str(i), LAYERS, seed=i)) for i in range(3)]
    registry = AdapterRegistry(LoRAConfig(max_loras=1, max_lora_rank=8, max_cpu_loras=2), TARGETS)
    first, second, third = (LoRARequest(str(i), i + 1, path) for i, path in enumerate(paths))
    kept = registry.get(first)
    registry.get(second)
    assert registry.get(first) is kept
    registry.get(third)
    assert registry.loaded() == {1, 3}
    with pytest.raises(InvalidRequestError, match=r"lora_int_id 1 is adapter '0' of .*; use another"):
        registry.get(LoRARequest("1", 1, paths[1]))
    replaced = registry.get(LoRARequest("1", 1, paths[1], load_inplace=True))
    assert replaced.key != kept.key
    assert registry.remove(1)
    assert not registry.remove(1)
    with pytest.raises(InvalidRequestError, match=r"adapter '9': .*nowhere"):
        registry.get(LoRARequest("9", 9, str(tmp_path / "nowhere")))


# --- In the engine, with the fake runner: its tokens tell the adapter that made them

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LAYER = {"model.linear": (8, 6)}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 8,
        "max_position_embeddings": 64, "num_attention_heads": 1, "num_hidden_layers": 1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def fake_llm(model_dir: Path, runner: Any = FakeRunner, **flat: Any) -> LLM:
    sizes = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, "enable_lora": True, **flat}
    return LLM.from_verdict(fake_verdict(str(model_dir), runner, **sizes))


def solo(prompt: list[int], adapter: Adapter | None) -> list[int]:
    version = 0 if adapter is None else adapted(0, adapter.key)
    return solo_run(prompt, GREEDY, vocab_size=97, max_model_len=64, weights=version)[0]


@pytest.mark.parametrize("max_loras", [1, 2])
def test_the_engine_mixes_no_adapters(model_dir: Path, tmp_path: Path, max_loras: int) -> None:
    lora = [LoRARequest(str(i), i, str(write_adapter(tmp_path / str(i), LAYER, seed=i))) for i in range(1, 4)]
    most: list[int] = []

    class Watching(FakeRunner):
        def execute_model(self, scheduler_output: Any) -> None:
            super().execute_model(scheduler_output)
            used = {row.request.adapter.key for row in self.rows.values() if row.request.adapter is not None}
            most.append(len(used))

    runner = partial(Watching, max_steps_in_flight=2, available_bytes=128 * 30)
    with fake_llm(model_dir, runner, max_loras=max_loras, max_cpu_loras=3) as llm:
        prompt = [7] * 10
        asked = [None, *lora] * 5
        for _ in range(2):
            outputs = llm.generate([prompt] * 20, GREEDY, lora_request=asked)
            adapters = {each.lora_int_id: llm._client.adapters().get(each) for each in lora}
            for request, output in zip(asked, outputs, strict=True):
                adapter = None if request is None else adapters[request.lora_int_id]
                assert output.outputs[0].token_ids == solo(prompt, adapter)
        assert all(output.num_cached_tokens == 8 for output in outputs), "each finds its own blocks"
        assert max(most) == max_loras
        stream = llm.stream(prompt, GREEDY, lora_request=lora[0])
        tokens = [token for output in stream for token in output.outputs[0].token_ids]
        assert tokens == solo(prompt, adapters[1])


def test_a_bad_adapter_fails_its_own_prompt(model_dir: Path, tmp_path: Path) -> None:
    good = LoRARequest("good", 1, str(write_adapter(tmp_path / "good", LAYER)))
    bad = LoRARequest("bad", 2, str(write_adapter(tmp_path / "bad", LAYER, r=17)))
    with fake_llm(model_dir) as llm:
        outputs = llm.generate([[1], [2]], GREEDY, lora_request=[good, bad])
        assert outputs[0].error is None
        assert "has rank 17, over max_lora_rank=16" in str(outputs[1].error)
        with pytest.raises(InvalidRequestError, match="over max_lora_rank"):
            llm.stream([1], GREEDY, lora_request=bad)
        for wrong in (["good", None], {"a": 1}, "good", 7):
            with pytest.raises(InvalidRequestError, match="lora_request"):
                llm.stream([1], GREEDY, lora_request=wrong)
        with pytest.raises(InvalidRequestError, match="1 lora_requests for 2 prompts"):
            llm.generate([[1], [2]], GREEDY, lora_request=[good])
        assert llm.add_lora(good) is False
        assert llm.remove_lora(1)
        assert llm.add_lora(good) is True
        assert llm.list_loras() == {1}


def test_saved_tensors_are_not_shared_with_the_file(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, LAYERS)
    adapter = read(path)
    kept = adapter.layers["model.layers.0.q_proj"].a.clone()
    save_file({A: torch.zeros(4, 8)}, path / "adapter_model.safetensors")
    assert torch.equal(adapter.layers["model.layers.0.q_proj"].a, kept)
