"""Features together with several ranks and replicas: tokens are transformers' own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.quantize import quantize_checkpoint
from dodona import LLM, LoRARequest, SamplingParams
from dodona.runners.interface import KVConnectorOutput
from dodona.runners.kv_transfer.rank_outputs import RankOutputs
from tests.distributed.test_tensor_parallel import NEW_TOKENS, prompts
from tests.distributed.thread_runners import generate_on_ranks
from tests.distributed.thread_workers import use_threads
from tests.lora.test_v1 import check as check_adapters
from tests.lora.test_v1 import make_llm, plain
from tests.support.adapters import merge, scale_of, write_adapter
from tests.support.equal_tokens import EqualTokens
from tests.support.quantized_reference import plain_model
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_quantized import SIZES
from tests.v1.test_quantized_experts import write_mxfp4

TP, PP, PCP, DP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "prefill_context", "data"))


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    use_threads(monkeypatch)


def llm(path: Any, **flat: Any) -> LLM:
    settings = {
        "device": "cpu", "skip_tokenizer_init": True, "block_size": 4, "max_num_seqs": 5, "max_model_len": 64,
        "num_gpu_blocks_override": 16, "max_num_batched_tokens": 16,
    }  # fmt: skip
    return LLM(str(path), **{**settings, **flat})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("w4a16-asym", {TP: 2}),
        ("awq", {TP: 2, PP: 2}),
        ("w8a8-int8", {TP: 2}),
        ("w8a8-int8-asym", {TP: 2, PCP: 2}),
        ("fp8", {TP: 2}),
        ("gptq-act-order", {PP: 2}),
    ],
    ids=str,
)
def test_quantized_layers(tiny_models, tmp_path, name, sizes):
    path = tmp_path / "model"
    quantize_checkpoint(tiny_models.path("qwen3", **SIZES), path, name, prompts=prompts())
    found, _ = generate_on_ranks(path, prompts(), NEW_TOKENS, driver={"budget": 13}, **sizes)
    compare(plain_model(path), found[0], half_precision="a8" in name or name == "fp8")


def compare(reference: Any, found: list[list[int]], *, half_precision: bool) -> None:
    """Compare with a model of transformers."""

    def logits(ids: Any) -> torch.Tensor:
        with torch.inference_mode():
            return reference(input_ids=torch.tensor([list(ids)])).logits[0, -1]

    equal = EqualTokens(logits, half_precision=half_precision)
    for prompt, count, tokens in zip(prompts(), NEW_TOKENS, found, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]), do_sample=False, min_new_tokens=count, max_new_tokens=count
        )
        equal.compare(prompt, expected[0, len(prompt) :].tolist(), tokens)
    equal.check()


@pytest.mark.parametrize(
    ("family", "name", "sizes"),
    [
        ("qwen3-moe", "w4a16-asym", {TP: 2}),
        ("qwen3-moe", "awq", {TP: 2, PP: 2, "enable_expert_parallel": True}),
        ("mixtral", "w8a8-fp8", {TP: 2, PCP: 2}),
        ("qwen3-moe", "gptq-act-order", {PP: 2, PCP: 2}),
        ("gpt-oss", "mxfp4", {PP: 2}),
    ],
    ids=str,
)
def test_quantized_experts(tiny_models, tmp_path, family, name, sizes):
    """One rank's tokens, which `tests.v1.test_quantized_experts` compares with those of a plain model."""
    path = tmp_path / "model"
    changes = dict(SIZES) if family == "mixtral" else {**SIZES, "moe_intermediate_size": 32}
    if name == "mxfp4":
        write_mxfp4(tiny_models, path)
    else:
        quantize_checkpoint(tiny_models.path(family, **changes), path, name, prompts=prompts())
    (found, _), (alone, _) = (
        generate_on_ranks(path, prompts(), NEW_TOKENS, driver={"budget": 13}, **those)
        for those in (sizes, {})
    )
    assert found == alone
    if family == "mixtral":
        compare(plain_model(path), alone[0], half_precision=True)


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_experts_that_are_quantized_while_they_are_read(tiny_models, method):
    path = tiny_models.path("qwen3-moe", **SIZES, moe_intermediate_size=64)
    outputs = []
    for sizes in ({}, {TP: 2}, {DP: 2}):
        with llm(path, quantization=method, dtype="float32", **sizes) as one:
            found = [[tokens for tokens, _ in _run(one, prompts())]]
            one.reload_weights()
            outputs += [*found, [tokens for tokens, _ in _run(one, prompts())]]
    assert all(found == outputs[0] for found in outputs)


@pytest.mark.parametrize("sizes", [{TP: 2}, {PP: 2, DP: 2}, {TP: 2, PCP: 2}], ids=str)
def test_adapters(tiny_models, tmp_path, sizes):
    path = tiny_models.path("qwen3")
    with make_llm(path, **sizes, max_loras=1) as one:
        found = one._client.call(lambda runner, _: runner.get_lora_targets())
        targets = {name: (target.in_features, target.out_features) for name, target in found.items()}
        assert {sizes for name, sizes in targets.items() if name.endswith("o_proj")} == {(64, 32)}
        some = dict(list(targets.items())[::2])
        first = write_adapter(tmp_path / "1", targets, r=4, lora_alpha=6, target_modules=list(targets))
        second = write_adapter(tmp_path / "2", some, r=2, seed=1, lora_alpha=3, target_modules=list(some))
        adapters = [None, LoRARequest("1", 1, str(first)), LoRARequest("2", 2, str(second))]
        models = [
            plain(path),
            merge(plain(path), first, scale_of(6, 4)),
            merge(plain(path), second, scale_of(3, 2)),
        ]
        for _ in range(2):  # an adapter that was dropped for another one is sent again
            check_adapters(one, adapters, models)


def _run(one: LLM, todo: list[list[int]]) -> list[tuple[list[int], int]]:
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    outputs = one.generate([{"prompt_token_ids": p} for p in todo], greedy, use_tqdm=False)
    return [(list(output.outputs[0].token_ids), output.num_cached_tokens) for output in outputs]


@pytest.mark.parametrize(
    ("sizes", "caching"),
    [
        ({TP: 2}, True),
        ({PP: 2}, False),
        ({PP: 2}, True),
        ({PCP: 2}, False),
        ({DP: 2}, True),
        ({TP: 2, PP: 2, DP: 2}, False),
    ],
    ids=str,
)
def test_offloaded_blocks(tiny_models, reference, sizes, caching):
    path = tiny_models.path("gemma2")
    plain_tokens = reference(path)
    equal = EqualTokens(lambda ids: plain_tokens.logits(ids)[-1])
    todo = [[*range(2 + n, 2 + n + length)] for n, length in enumerate((3, 33, 17, 40))]
    with llm(path, kv_offloading_size=0.002, enable_prefix_caching=caching, **sizes) as one:
        for turn in range(3):
            for prompt, (tokens, cached) in zip(todo, _run(one, todo), strict=True):
                equal.compare(prompt, plain_tokens.generate(prompt, 8), tokens)
                if turn and DP not in sizes and len(prompt) > 4:
                    assert cached >= 4 * ((len(prompt) - 1) // 4)
        if sizes.get(DP, 1) == 1:
            assert one._client.call(lambda _, scheduler: scheduler.num_preemptions)
        one.reload_weights()
        assert [cached for _, cached in _run(one, todo)] == [0] * len(todo)
        held = one._client.call_all(lambda _, scheduler: scheduler.transfers._sending, drain=True)
        assert held == [{}] * sizes.get(DP, 1)
    equal.check()


def _storage(folder: Path, role: str = "kv_both") -> dict[str, Any]:
    return {
        "kv_transfer_config": {
            "kv_connector": "SharedStorageConnector",
            "kv_role": role,
            "kv_connector_extra_config": {"shared_storage_path": str(folder)},
        }
    }


def test_replicas_share_stored_blocks(tiny_models, reference, tmp_path):
    path = tiny_models.path("llama")
    plain_tokens = reference(path)
    todo = [[*range(2 + n, 2 + n + length)] for n, length in enumerate((33, 17))]
    expected = [plain_tokens.generate(prompt, 8) for prompt in todo]
    for turn in range(2):
        with llm(path, **_storage(tmp_path / "kv"), **{DP: 2}) as one:
            found = _run(one, todo)
        assert [tokens for tokens, _ in found] == expected
        assert all(cached for _, cached in found) == bool(turn)


@pytest.mark.parametrize(
    ("family", "writer", "readers", "files_of_a_block"),
    [
        ("qwen3", {TP: 2}, [{}, {TP: 2}, {PP: 2}], 2),
        ("qwen3", {}, [{TP: 4}], 1),
        ("mixtral", {TP: 2, PP: 2}, [{}], 4),
        ("deepseek-v3", {TP: 2, PP: 2}, [{TP: 4}], 2),  # its attention is whole on every rank
        ("llama", {TP: 4, PCP: 2}, [{PP: 2, TP: 2}], 2),  # two key/value heads
        ("gemma3n", {TP: 2}, [{}], 2),
        ("mimo", {TP: 4}, [{}, {TP: 2}], 4),  # layers of two key/value heads, and of four
        ("gemma4-global", {TP: 2, PP: 2}, [{TP: 4}], 4),  # of two, and of one
    ],
    ids=str,
)
def test_stored_blocks_of_other_sizes(
    tiny_models, reference, tmp_path, family, writer, readers, files_of_a_block
):
    path = tiny_models.path(family)
    plain_tokens = reference(path)
    equal = EqualTokens(lambda ids: plain_tokens.logits(ids)[-1])
    todo = [[*range(2 + n, 2 + n + length)] for n, length in enumerate((3, 33, 17, 40))]

    def check(one: LLM, *, cached: bool) -> None:
        for prompt, (tokens, found) in zip(todo, _run(one, todo), strict=True):
            equal.compare(prompt, plain_tokens.generate(prompt, 8), tokens)
            assert found == cached * 4 * ((len(prompt) - 1) // 4)

    with llm(path, **_storage(tmp_path, "kv_producer"), **writer) as one:
        check(one, cached=False)
    stored = sorted(tmp_path.rglob("*.safetensors"))
    blocks = {file if file.parent.suffix != ".parts" else file.parent for file in stored}
    assert len(stored) == len(blocks) * files_of_a_block
    for sizes in readers:
        with llm(path, **_storage(tmp_path), **sizes) as one:
            check(one, cached=True)
    assert sorted(tmp_path.rglob("*.safetensors")) == stored
    # One part of a block is missing, another one is cut: the block is computed, and what is left is used.
    stored[0].unlink()
    os.truncate(stored[-1], 100)
    for sizes in (writer, readers[-1]):
        with llm(path, **_storage(tmp_path), **sizes) as one:
            for prompt, (tokens, _) in zip(todo, _run(one, todo), strict=True):
                equal.compare(prompt, plain_tokens.generate(prompt, 8), tokens)
    with llm(path, **_storage(tmp_path), **readers[0]) as one:
        check(one, cached=True)
    equal.check()


@pytest.mark.parametrize(
    ("producer", "consumer"), [({TP: 2}, {}), ({PP: 2}, {TP: 2}), ({TP: 2, PCP: 2}, {PP: 2})], ids=str
)
def test_blocks_through_shared_memory(tiny_models, reference, tmp_path, producer, consumer):
    path = tiny_models.path("qwen3")
    plain_tokens = reference(path)
    equal = EqualTokens(lambda ids: plain_tokens.logits(ids)[-1])
    todo = [[*range(2 + n, 2 + n + length)] for n, length in enumerate((3, 33, 17, 40))]
    with (
        llm(path, **memory(tmp_path / "kv", "kv_producer"), **producer) as one,
        llm(path, **memory(tmp_path / "kv", "kv_consumer"), **consumer) as other,
    ):
        first = SamplingParams(temperature=0.0, max_tokens=1)
        one.generate([{"prompt_token_ids": p} for p in todo], first, use_tqdm=False)
        for prompt, (tokens, found) in zip(todo, _run(other, todo), strict=True):
            equal.compare(prompt, plain_tokens.generate(prompt, 8), tokens)
            assert found == 4 * ((len(prompt) - 1) // 4)
    equal.check()


def test_inner_states_take_their_memory_first(tiny_models, reference):
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    path = tiny_models.path("qwen3-next", num_hidden_layers=4, layer_types=kinds)
    plain_tokens = reference(path)
    equal = EqualTokens(lambda ids: plain_tokens.logits(ids)[-1])
    with llm(path, num_gpu_blocks_override=None, kv_cache_memory_bytes=None, **{PP: 2, DP: 2}) as one:
        assert one.num_kv_blocks >= 16
        for prompt, (tokens, cached) in zip(prompts(), _run(one, prompts()), strict=True):
            equal.compare(prompt, plain_tokens.generate(prompt, 8), tokens)
            assert cached == 0
    equal.check()


def test_a_transfer_has_ended_once_it_has_on_all_ranks():
    def report(sent: str = "", received: str = "", invalid: tuple[int, ...] = ()) -> KVConnectorOutput:
        return KVConnectorOutput(frozenset(sent), frozenset(received), frozenset(invalid))

    outputs = RankOutputs(2)
    assert outputs.add([report(sent="a", received="x", invalid=(3,)), None]) is None
    assert outputs.add([report(received="y"), report(received="y")]) == report(received="y", invalid=(3,))
    assert outputs.add([None, report(sent="a")]) == report(sent="a")
    assert outputs.add([None, report(received="x", invalid=(4,))]) == report(received="x", invalid=(3, 4))
    assert outputs.add([report(received="z"), report(received="z")]) == report(received="z")
    assert outputs.add([None, None]) is None
