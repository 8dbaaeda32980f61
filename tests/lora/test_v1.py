"""Adapters on V1, against transformers with merged weights: rows of several adapters, and of none."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from checkpoints.quantize import quantize_checkpoint
from dodona import LLM, LoRARequest, SamplingParams
from dodona.runners.errors import InvalidRequestError
from dodona.runners.v1 import device_serving
from tests.support.adapters import linear_layers, merge, scale_of, write_adapter
from tests.support.equal_tokens import EqualTokens
from tests.support.every_family import make_model, tiny_config
from tests.support.quantized_reference import plain_model
from tests.support.tiny_models import TinyModels

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=3)
PROMPTS = [[5, 9, 17, 3, 8, 1, 2, 30, 31, 32, 33], [4, 7], [60, 2, 7, 9, 11]]


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def generated(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities, by forward passes over everything."""
    tokens, logprobs = list(prompt), []
    for _ in range(GREEDY.max_tokens or 0):
        with torch.inference_mode():
            last = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float().log_softmax(-1)
        tokens.append(int(last.argmax()))
        logprobs.append(float(last.max()))
    return tokens[len(prompt) :], logprobs


def make_llm(path: Path, **flat: Any) -> LLM:
    settings = {
        "device": "cpu", "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 16,
        "num_gpu_blocks_override": 100, "skip_tokenizer_init": True, "enable_lora": True,
        "max_loras": 2, "max_lora_rank": 8, "max_model_len": 128, **flat,
    }  # fmt: skip
    return LLM(str(path), **settings)


def check(llm: LLM, lora: Any, models: list[Any], prompts: list[list[int]] = PROMPTS) -> None:
    outputs = llm.generate(prompts, GREEDY, lora_request=lora, use_tqdm=False)
    for prompt, output, model in zip(prompts, outputs, models, strict=True):
        assert output.error is None
        tokens, logprobs = generated(model, prompt)
        sequence = output.outputs[0]
        assert sequence.token_ids == tokens
        found = [entry[token].logprob for entry, token in zip(sequence.logprobs, tokens, strict=True)]
        assert found == pytest.approx(logprobs, abs=2e-4)


FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {},
    "gpt2": {},
    "gpt-neox": {},
    "phi3": {},
    "opt": {},
    "deepseek-v3": {},
    "qwen3-moe": {},
    "llama4": {},  # its router is a linear layer that returns a tuple
    "falcon-h1": {},
    "mamba": {},
    "lfm2": {},
    "qwen3-next": {},
}


ROW_BY_ROW = ("bloom", "gpt_neo", "rwkv", "openai-gpt")


@pytest.mark.parametrize("family", [*FAMILIES, *ROW_BY_ROW])
def test_rows_of_three_kinds_in_one_batch(family: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    if family in ROW_BY_ROW:
        path = tmp_path / "model"
        make_model(tiny_config(family)).save_pretrained(path)
    else:
        path = tiny_models.path(family, **FAMILIES[family])
    three_kinds_in_one_batch(path, tmp_path)


def test_rows_of_three_kinds_in_steps_on_the_device(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's interpreter: which adapter each token has is found from the state's rows."""
    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: True)
    path = tiny_models.path("llama", num_hidden_layers=1)
    three_kinds_in_one_batch(path, tmp_path, steps_in_flight=2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "qwen3-moe", "deepseek-v3", "falcon-h1", "mamba", "lfm2"]
)
def test_rows_of_three_kinds_by_graphs(family: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    three_kinds_in_one_batch(
        tiny_models.path(family),
        tmp_path,
        steps_in_flight=2,
        device="cuda",
        dtype="float32",
        max_num_batched_tokens=64,
    )


def three_kinds_in_one_batch(path: Path, tmp_path: Path, steps_in_flight: int = 1, **flat: Any) -> None:
    with make_llm(path, **flat) as llm:
        assert llm._client.call(lambda runner, _: runner.max_steps_in_flight) == steps_in_flight
        if flat.get("device") == "cuda":
            assert llm._client.call(lambda runner, _: runner._on_device.steps.ready.graphs) is not None
        targets = {
            name: (target.in_features, target.out_features)
            for name, target in llm._client.call(lambda runner, _: runner.get_lora_targets()).items()
        }
        own = linear_layers(plain(path))
        assert targets == {name: sizes for name, sizes in own.items() if name in targets}
        assert len(targets) >= 5
        # All layers at rank 4; and a part of them at rank 2, scaled by the root of the rank.
        some = dict(list(targets.items())[::2])
        first = write_adapter(tmp_path / "first", targets, r=4, lora_alpha=6, target_modules=list(targets))
        second = write_adapter(
            tmp_path / "second", some, r=2, seed=1, lora_alpha=3, use_rslora=True, target_modules=list(some)
        )
        models = [
            merge(plain(path), first, scale_of(6, 4)),
            plain(path),
            merge(plain(path), second, scale_of(3, 2, rslora=True)),
        ]
        lora = [LoRARequest("first", 1, str(first)), None, LoRARequest("second", 2, str(second))]
        check(llm, lora, models)
        # With the prefix cache, each adapter finds its own blocks.
        check(llm, lora, models)
        check(llm, lora[::-1], [models[2], models[1], models[0]])
        assert llm.list_loras() == {1, 2}
        if steps_in_flight == 1:
            return
        # State rows begin anew: the check of the graphs computes without adapters in the first of them.
        llm.sleep()
        llm.wake_up()
        assert llm._client.call(lambda runner, _: runner._on_device.model.adapters._slots.max().item()) == -1
        if flat.get("device") == "cuda":
            assert llm._client.call(lambda runner, _: runner._on_device.steps.ready.graphs) is not None
            check(llm, lora, models)


@pytest.mark.parametrize("form", ["w4a16-asym", "gptq-act-order"])
def test_adapters_over_quantized_layers(form: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    """Against hooks that add scale * B A x to the outputs of the plain model of that format."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.15}
    path = tmp_path / "model"
    quantize_checkpoint(tiny_models.path("qwen3", **sizes), path, form, prompts=PROMPTS)
    model = plain_model(path)
    ends = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
    with make_llm(path, dtype="float32") as llm:
        targets = llm._client.call(lambda runner, _: runner.get_lora_targets())
        layers = {
            name: (target.in_features, target.out_features)
            for name, target in targets.items()
            if name.endswith(ends)
        }
        assert len(layers) == 10
        adapter = write_adapter(tmp_path / "a", layers, spread=0.15)
        lora = LoRARequest("a", 1, str(adapter))
        outputs = llm.generate(PROMPTS, GREEDY, lora_request=[lora, None, lora], use_tqdm=False)
    stored = load_file(adapter / "adapter_model.safetensors")
    hooks = []
    for adapted in (False, True):
        if adapted:
            for name in layers:
                a, b = (stored[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
                hook = partial(lambda a, b, module, args, output: output + 2 * (args[0] @ a.T @ b.T), a, b)
                hooks.append(model.get_submodule(name).register_forward_hook(hook))
        equal = EqualTokens(
            lambda ids: model(torch.tensor([ids]), use_cache=False).logits[0, -1].detach(),
            half_precision=form == "fp8",
        )
        for number in (0, 2) if adapted else (1,):
            expected, _ = generated(model, PROMPTS[number])
            equal.compare(PROMPTS[number], expected, outputs[number].outputs[0].token_ids)
        equal.check()


def test_patterns_of_rank_alpha_and_layers(tiny_models: TinyModels, tmp_path: Path) -> None:
    path = tiny_models.path("llama")
    layers = {
        name: sizes
        for name, sizes in linear_layers(plain(path), ["q_proj", "v_proj", "down_proj"]).items()
        if ".layers.1." in name
    }
    ranks = {name: 3 if "down" in name else 6 if "self_attn.v" in name else 4 for name in layers}
    adapter = write_adapter(
        tmp_path / "a", layers, ranks=ranks, lora_alpha=8, layers_to_transform=[1],
        rank_pattern={"down_proj": 3, r"layers\.\d+\.self_attn\.v_proj": 6},
        alpha_pattern={"model.layers.1.self_attn.q_proj": 20, "v_proj": 1.5},
    )  # fmt: skip
    alphas = {name: 20 if "q_proj" in name else 1.5 if "v_proj" in name else 8 for name in layers}
    scales = {name: alphas[name] / ranks[name] for name in layers}
    with make_llm(path) as llm:
        check(llm, LoRARequest("a", 5, str(adapter)), [merge(plain(path), adapter, scales)] * 3)


def test_more_adapters_than_fit_into_a_step_take_turns(tiny_models: TinyModels, tmp_path: Path) -> None:
    path = tiny_models.path("llama")
    layers = linear_layers(plain(path), ["q_proj", "down_proj", "lm_head"])
    paths = [write_adapter(tmp_path / str(i), layers, seed=i) for i in range(4)]
    models = [merge(plain(path), each, scale_of(8, 4)) for each in paths]
    lora = [LoRARequest(str(i), i + 1, str(each)) for i, each in enumerate(paths)]
    prompts = [PROMPTS[i % 3] for i in range(8)]
    with make_llm(path) as llm:
        check(llm, [lora[i % 4] for i in range(8)], [models[i % 4] for i in range(8)], prompts)
        assert llm.list_loras() == {3, 4} or len(llm.list_loras()) == 2
    with make_llm(path, max_loras=1, max_cpu_loras=4) as llm:
        check(llm, [lora[i % 4] for i in range(8)], [models[i % 4] for i in range(8)], prompts)
        assert llm.list_loras() == {1, 2, 3, 4}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adapters_come_and_go_while_requests_run(
    device: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    path = tiny_models.path("llama", num_hidden_layers=1)
    layers = linear_layers(plain(path), ["q_proj", "up_proj"])
    versions = [write_adapter(tmp_path / f"v{i}", layers, seed=i, spread=0.6) for i in range(2)]
    settings = {"device": device, "dtype": "float32", "num_gpu_blocks_override": 300}
    with make_llm(path, max_num_seqs=32, max_num_batched_tokens=64, **settings) as llm:
        known: dict[int, list[list[int]]] = {index: [] for index in range(3)}
        for each in versions:
            lora = LoRARequest("swapped", 1, str(each), load_inplace=True)
            for index, output in enumerate(llm.generate(PROMPTS, GREEDY, lora_request=lora)):
                known[index].append(output.outputs[0].token_ids)
        base = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]
        assert known[0][0] != known[0][1] != base[0]
        done = threading.Event()

        def work(number: int) -> int:
            index = number % 3
            for turn in itertools.count():
                if done.is_set() and turn:
                    return turn
                lora = LoRARequest("fixed", 2, str(versions[1])) if number % 2 else None
                if number % 4 == 3:
                    lora = LoRARequest("swapped", 1, str(versions[turn % 2]), load_inplace=True)
                (output,) = llm.generate(PROMPTS[index], GREEDY, lora_request=lora, use_tqdm=False)
                expected = base[index] if lora is None else known[index][turn % 2 if number % 4 == 3 else 1]
                assert output.outputs[0].token_ids == expected
            raise AssertionError

        with ThreadPoolExecutor(32) as pool:
            workers = [pool.submit(work, number) for number in range(32)]
            for change in range(100):
                llm.add_lora(LoRARequest("swapped", 1, str(versions[change % 2]), load_inplace=True))
                llm.remove_lora(change % 2 + 1)
            done.set()
            assert sum(worker.result(60) for worker in workers) >= 32
        blocks = llm._client._engine.call(lambda runner, scheduler: scheduler.blocks)
        assert blocks.num_free == blocks.num_blocks


def test_requests_without_enable_lora(tiny_models: TinyModels, tmp_path: Path) -> None:
    path = tiny_models.path("llama")
    adapter = write_adapter(tmp_path / "a", linear_layers(plain(path), ["q_proj"]))
    with LLM(str(path), device="cpu", skip_tokenizer_init=True, num_gpu_blocks_override=100) as llm:
        (output,) = llm.generate([PROMPTS[0]], GREEDY, lora_request=LoRARequest("a", 1, str(adapter)))
        assert "make the LLM with enable_lora=True" in str(output.error)
        with pytest.raises(InvalidRequestError, match="adapters are off"):
            llm.add_lora(LoRARequest("a", 1, str(adapter)))
