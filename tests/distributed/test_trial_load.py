"""A trial load of several ranks: what it sizes is what ranks that start size, and what it refuses they do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.quantize import quantize_checkpoint
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.build import build_runner
from dodona.runners.interface import KVCacheSpec, Runner
from dodona.runners.kv_room import SCHEDULER_BYTES, size_of
from dodona.runners.llm import LLM
from dodona.runners.meta_device import on_meta
from dodona.runners.trial_load import try_load
from dodona.runners.v1.runner import V1Runner
from tests.distributed.test_tensor_parallel import prompts
from tests.distributed.thread_workers import use_threads
from tests.support.permitted import CHECKPOINTS, installed_families
from tests.support.tiny_models import TinyModels
from tests.v1.test_quantized import SIZES
from tests.v1.test_trial_kv import permitted, refused_alike

TP, PP, PCP, DP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "prefill_context", "data"))
EXPERTS = "enable_expert_parallel"


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    use_threads(monkeypatch)


def tried(verdict: Verdict) -> Runner:
    with on_meta():
        return build_runner(verdict).try_load()


def sized_alike(verdict: Verdict) -> None:
    """A start's ranks have the blocks and the parts of blocks that the trial says, and as many of them."""
    assert try_load(verdict) is None
    trial, start = tried(verdict), build_runner(verdict)
    try:
        start.load_model()
        spec, parts = start.get_kv_cache_spec(), start.get_kv_parts()
        assert trial.get_kv_cache_spec() == spec
        handed_on = [part for part in parts if part.is_writer]
        assert sorted(map(repr, trial.get_kv_parts())) == sorted(map(repr, handed_on))
        assert trial.most_available_memory() >= start.determine_available_memory()
        config, limits = verdict.config, start.limits
        sizes = [
            size_of(config, limits, spec, measured)
            for measured in (trial.most_available_memory, start.determine_available_memory)
        ]
        assert sizes[0] == sizes[1]
    finally:
        start.shutdown()


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {TP: 4}),
        ("llama", {DP: 2}),
        ("llama", {TP: 2, PP: 2}),
        ("gemma2", {TP: 2}),
        ("gemma2", {PP: 2}),
        ("gemma2", {PCP: 2}),
    ],
    ids=str,
)
def test_what_ranks_have_of_blocks(family: str, sizes: dict[str, Any], tiny_models: TinyModels) -> None:
    sized_alike(permitted(tiny_models.path(family, num_hidden_layers=3), **sizes))


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("qwen3-moe", {TP: 2, EXPERTS: True}),
        ("qwen3-moe", {TP: 4}),
        ("deepseek-v3", {TP: 4, PP: 2}),
        ("gpt-oss", {PP: 2}),
    ],
    ids=str,
)
def test_experts(family: str, sizes: dict[str, Any], tiny_models: TinyModels) -> None:
    sized_alike(permitted(tiny_models.path(family), **sizes))


@pytest.mark.parametrize(("name", "sizes"), [("w8a8-int8", {TP: 2}), ("awq", {TP: 2, PP: 2})], ids=str)
def test_quantized_layers(name: str, sizes: dict[str, Any], tiny_models: TinyModels, tmp_path: Path) -> None:
    quantize_checkpoint(tiny_models.path("qwen3", **SIZES), tmp_path / "model", name, prompts=prompts())
    sized_alike(permitted(tmp_path / "model", **sizes))


@pytest.mark.parametrize("draft", ["qwen3", "qwen3-eagle3", None])
@pytest.mark.parametrize("sizes", [{TP: 2}, {PP: 2, PCP: 2}], ids=str)
def test_the_rank_that_drafts_has_the_largest_blocks(draft: str | None, sizes: dict[str, Any]) -> None:
    what = {"method": "ngram"} if draft is None else {"model": str(CHECKPOINTS / draft)}
    speculative = {**what, "num_speculative_tokens": 3}
    sized_alike(permitted(CHECKPOINTS / "qwen3", speculative_config=speculative, **sizes))


@pytest.mark.parametrize("sizes", [{TP: 2}, {PP: 2}], ids=str)
def test_adapters_of_shares(sizes: dict[str, Any], tiny_models: TinyModels) -> None:
    assert try_load(permitted(tiny_models.path("llama"), enable_lora=True, **sizes)) is None


@pytest.mark.parametrize(
    ("layers", "heads", "sizes"),
    [
        (2, 2, {TP: 4}),  # neighbours have the same head
        (3, 2, {PP: 2}),  # one stage has more layers
        (2, 2, {PCP: 2}),  # each rank has all
    ],
    ids=str,
)
def test_memory_for_one_sequence_is_enough_on_each_rank_and_a_byte_less_is_not(
    layers: int, heads: int, sizes: dict[str, Any], tiny_models: TinyModels
) -> None:
    path = tiny_models.path("llama", num_hidden_layers=layers, num_key_value_heads=heads)
    runner = tried(permitted(path, **sizes))
    spec = runner.get_kv_cache_spec()
    need = spec.most_blocks_per_row(runner.limits) * spec.bytes_per_block
    enough = permitted(path, kv_cache_memory_bytes=need, **sizes)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    refused_alike(permitted(path, kv_cache_memory_bytes=need - 1, **sizes), "kv_cache_memory_bytes")
    block, ranks = spec.bytes_per_block, math.prod(sizes.values())
    enough = permitted(path, kv_offloading_size=block * ranks / 2**30, **sizes)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    less = permitted(path, kv_offloading_size=(block - 1) * ranks / 2**30, **sizes)
    refused_alike(less, f"hold no KV block of {block} bytes")


@pytest.mark.skipif("qwen3-next" not in installed_families(), reason="this transformers has no such type")
def test_stages_measure_by_the_same_steps(tiny_models: TinyModels) -> None:
    """One of them has inner states, and hands on no step that the other doesn't take."""
    verdict = permitted(tiny_models.path("qwen3-next"), max_num_seqs=16, **{PP: 2})
    with LLM.from_verdict(verdict) as llm:
        spec = llm._client.call(lambda runner, _: runner._call_all("get_kv_cache_spec"))
        assert [bool(each.state_bytes_per_row) for each in spec] == [True, False]
        prompt = [{"prompt_token_ids": [5, 6]}]
        assert llm.generate(prompt, use_tqdm=False)[0].outputs[0].token_ids


def test_blocks_that_no_rank_has_room_for(tiny_models: TinyModels) -> None:
    verdict = permitted(tiny_models.path("llama"), num_gpu_blocks_override=10**14, **{PP: 2})
    refused_alike(verdict, "can't be allocated")


@pytest.mark.parametrize("sizes", [{TP: 2, DP: 2}, {DP: 4}, {PP: 4}], ids=str)
def test_ranks_of_all_replicas_share_a_host(
    sizes: dict[str, Any], tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: the smaller share holds one block less."""
    path = tiny_models.path("llama", num_hidden_layers=4)
    block = tried(permitted(path, **sizes)).get_kv_cache_spec().bytes_per_block
    runner = tried(permitted(path, gpu_memory_utilization=0.5, **sizes))
    monkeypatch.setattr("dodona.runners.device.host_memory.available_memory", lambda: 2 * 4 * 3 * block)
    assert runner.most_available_memory() == 3 * block
    monkeypatch.setattr("dodona.runners.device.host_memory.available_memory", lambda: 2 * 4 * 3 * block - 8)
    assert runner.most_available_memory() < 3 * block


@pytest.mark.parametrize("sizes", [{TP: 2, DP: 2}, {DP: 3}, {PP: 2}], ids=str)
def test_a_part_of_the_host_is_enough_on_each_rank_and_a_byte_less_is_not(
    sizes: dict[str, Any], tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left, ranks = tiny_models.path("llama"), 1 << 30, math.prod(sizes.values())
    runner = tried(permitted(path, **sizes))
    spec = runner.get_kv_cache_spec()
    need = spec.most_blocks_per_row(runner.limits) * spec.bytes_per_block
    monkeypatch.setattr("dodona.runners.device.host_memory.available_memory", lambda: left)
    enough = permitted(path, gpu_memory_utilization=ranks * (need + 0.5) / left, **sizes)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    less = permitted(path, gpu_memory_utilization=ranks * (need - 0.5) / left, **sizes)
    refused_alike(less, "raise gpu_memory_utilization")


def test_what_all_ranks_take_with_their_steps_is_what_the_host_has(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, growth, ranks = 1 << 30, 100 << 20, 4
    monkeypatch.setattr("dodona.runners.device.host_memory.available_memory", lambda: left)
    monkeypatch.setattr("dodona.runners.device.host_memory._reset_peak", lambda: 0)
    monkeypatch.setattr("dodona.runners.device.host_memory._status_bytes", lambda _: growth)
    monkeypatch.setattr(KVCacheSpec, "most_useful_bytes", lambda *_: 1 << 40)
    verdict = permitted(tiny_models.path("llama"), gpu_memory_utilization=1.0, **{TP: 2, DP: 2})
    runner = build_runner(verdict)
    try:
        runner.load_model()
        block = runner.get_kv_cache_spec().bytes_per_block
        taken = runner.determine_available_memory()
    finally:
        runner.shutdown()
    assert left - ranks * (growth + block) < ranks * taken <= left - ranks * growth


@pytest.mark.parametrize("sizes", [{TP: 2}, {DP: 2}], ids=str)
def test_blocks_that_one_rank_has_room_for_and_not_all(
    sizes: dict[str, Any], tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, host, ranks = tiny_models.path("llama"), 1 << 30, 2
    monkeypatch.setattr("dodona.runners.machine.host_memory", lambda: host / 2**30)
    block = tried(permitted(path, **sizes)).get_kv_cache_spec().bytes_per_block
    count = host // (ranks * block + sizes.get(DP, 1) * SCHEDULER_BYTES)
    enough = permitted(path, num_gpu_blocks_override=count, **sizes)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    refused_alike(permitted(path, num_gpu_blocks_override=count + 1, **sizes), "on 2 ranks it takes 1 GiB")


@pytest.mark.parametrize(
    "flat", [{"kv_cache_memory_bytes": 1 << 29}, {DP: 2, "kv_offloading_size": 0.5}], ids=str
)
def test_what_is_given_to_each_rank_is_there_for_all(
    flat: dict[str, Any], tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rules of `dodona select`, and by a start of what was permitted elsewhere."""
    path, machine = tiny_models.path("llama"), "dodona.runners.machine.host_memory"
    verdict = permitted(path, **{TP: 2, **flat})
    for gib, fits in ((1.1, True), (0.99, False)):
        monkeypatch.setattr(machine, lambda gib=gib: gib)
        if fits:
            assert try_load(verdict) is None
            LLM.from_verdict(verdict).shutdown()
        else:
            refused_alike(verdict, f"the machine has {gib}")


def test_a_plan_with_an_unknown_style_is_refused(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dodona.runners.v1.tensor_parallel.SPLIT_STYLES", frozenset({"rowwise"}))
    verdict = permitted(tiny_models.path("llama"), **{TP: 2})
    with pytest.raises(UnsupportedConfiguration, match="styles that are not known here: colwise") as by_trial:
        try_load(verdict)
    with pytest.raises(UnsupportedConfiguration) as by_start:
        LLM.from_verdict(verdict)
    assert str(by_trial.value) == str(by_start.value)


def test_files_are_read_once_for_all_stages(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = V1Runner._read_model, []
    monkeypatch.setattr(V1Runner, "_read_model", lambda *args: calls.append(1) or read(*args))
    assert try_load(permitted(tiny_models.path("llama", num_hidden_layers=4), **{PP: 4})) is None
    assert len(calls) == 1


def test_a_model_whose_code_can_not_be_copied_is_read_again(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise TypeError("cannot pickle")

    monkeypatch.setattr(torch.nn.Linear, "__deepcopy__", fails, raising=False)
    path = tiny_models.path("llama", num_hidden_layers=3)
    verdict = permitted(path, **{PP: 2})
    layers = tried(verdict).get_kv_parts()[1].num_layers
    assert layers == 1


def test_each_stage_may_take_as_many_calls(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dodona.runners.meta_device.MOST_CALLS", 100)
    verdict = permitted(tiny_models.path("llama"), **{PP: 2})
    assert "more than 200 calls of torch" in (try_load(verdict) or "")
