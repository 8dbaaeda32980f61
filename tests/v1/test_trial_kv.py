"""The KV cache of a trial load: as large as that of a start, and refused where a start refuses it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.select import select_runner
from dodona.runners.build import build_runner
from dodona.runners.engine.kv_blocks import KVBlocks
from dodona.runners.errors import EngineSetupError
from dodona.runners.interface import Runner
from dodona.runners.kv_room import SCHEDULER_BYTES
from dodona.runners.llm import LLM
from dodona.runners.meta_device import on_meta
from dodona.runners.trial_load import try_load
from dodona.runners.v1 import device_serving
from tests.support import models_table
from tests.support.permitted import CHECKPOINTS, HEADS, installed_families
from tests.support.tiny_models import TinyModels

FEW = ("gemma2", "gemma3n", "gpt-oss", "deepseek-v3", "mamba", "bamba", "lfm3", "qwen3-next", "zaya")
"""Families that stand for the others: windows, shared KV, MLA, states alone and beside KV."""

LOOKING = ("dbrx", "deepseek_v4", "git", "jetmoe", "longcat_flash", "qwen4_exp", "xmod")
"""Types whose code looks for what is not zero, counts integers, masks by values, or splits by counts."""

ROWS = ("bloom", "openai-gpt", "recurrent_gemma", "reformer", "rwkv", "whisper", "zamba2")
"""Types that are computed row by row, in all ways."""


def permitted(model: Path, **flat: Any) -> Verdict:
    sizes = {"device": "cpu", "max_model_len": 32, "max_num_seqs": 3, "skip_tokenizer_init": True}
    return select_runner(EngineConfig.from_flat(str(model), **{**sizes, **flat}))


def loaded(verdict: Verdict) -> Runner:
    runner = build_runner(verdict)
    runner.load_model()
    return runner


def tried(verdict: Verdict) -> Runner:
    with on_meta():
        runner = build_runner(verdict).try_load()
    assert runner is not None
    return runner


def of_type(model_type: str, folder: Path) -> Path:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    models_table.save(model_type, folder)
    return folder


def need_of(verdict: Verdict) -> int:
    """Bytes of one sequence of `max_model_len`: whole KV blocks, window blocks and all rows' states."""
    runner = loaded(verdict)
    spec, limits = runner.get_kv_cache_spec(), runner.limits
    blocks = spec.most_blocks_per_row(limits)
    counts = zip(spec.num_window_blocks(blocks, limits), spec.window_groups, strict=True)
    windows = sum(count * group.bytes_per_block for count, group in counts)
    return blocks * spec.bytes_per_block + windows + limits.max_num_seqs * spec.state_bytes_per_row


def refused_alike(verdict: Verdict, words: str) -> None:
    """As by a start; torch says itself of memory that it can't have."""
    with pytest.raises(EngineSetupError, match=words) as by_trial:
        try_load(verdict)
    with pytest.raises(EngineSetupError) as by_start:
        LLM.from_verdict(verdict)
    assert str(by_trial.value) == str(by_start.value)


@pytest.mark.parametrize("family", sorted(installed_families()))
def test_a_block_takes_what_it_does_in_a_start(family: str, tiny_models: TinyModels) -> None:
    verdict = permitted(tiny_models.path(family))
    start, trial = loaded(verdict), tried(verdict)
    assert trial.get_kv_cache_spec() == start.get_kv_cache_spec()
    assert trial.get_kv_parts() == start.get_kv_parts()
    assert trial.most_available_memory() >= start.determine_available_memory()


@pytest.mark.parametrize("model_type", [*LOOKING, *ROWS])
def test_a_block_of_types_that_are_computed_otherwise(model_type: str, tmp_path: Path) -> None:
    verdict = permitted(of_type(model_type, tmp_path))
    assert tried(verdict).get_kv_cache_spec() == loaded(verdict).get_kv_cache_spec()
    assert try_load(verdict) is None


@pytest.mark.parametrize("model_type", ["jetmoe", "xmod"])
def test_sizes_of_types_that_look_into_values(model_type: str, tmp_path: Path) -> None:
    path = of_type(model_type, tmp_path)
    need = need_of(permitted(path))
    assert try_load(permitted(path, kv_cache_memory_bytes=need)) is None
    refused_alike(permitted(path, kv_cache_memory_bytes=need - 1), "less than one sequence")
    refused_alike(permitted(path, num_gpu_blocks_override=10**14), "can't be allocated")


@pytest.mark.parametrize("head", [*HEADS, "qwen3", None])
def test_drafts_take_room_in_blocks_and_rows(head: str | None) -> None:
    what = {"method": "ngram"} if head is None else {"model": str(CHECKPOINTS / head)}
    speculative = {**what, "num_speculative_tokens": 3}
    verdict = permitted(CHECKPOINTS / "qwen3", speculative_config=speculative)
    assert tried(verdict).get_kv_cache_spec() == loaded(verdict).get_kv_cache_spec()


@pytest.mark.parametrize("family", sorted({*FEW} & {*installed_families()}))
def test_memory_for_one_sequence_is_enough_and_a_byte_less_is_not(
    family: str, tiny_models: TinyModels
) -> None:
    path = tiny_models.path(family)
    need = need_of(permitted(path))
    enough = permitted(path, kv_cache_memory_bytes=need)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    try:
        less = permitted(path, kv_cache_memory_bytes=need - 1)
    except UnsupportedConfiguration as refusal:
        assert "kv_cache_memory_bytes" in str(refusal)  # noqa: PT017 - the rule knows this type
    else:
        refused_alike(less, "kv_cache_memory_bytes")


def test_memory_of_requests_that_are_computed_row_by_row(tmp_path: Path) -> None:
    path = of_type("bloom", tmp_path)
    need = need_of(permitted(path))
    assert need > 1
    assert try_load(permitted(path, kv_cache_memory_bytes=need)) is None
    refused_alike(permitted(path, kv_cache_memory_bytes=need - 1), "less than one sequence")


@pytest.mark.parametrize("family", ["gemma3n", "bamba"])
def test_a_share_of_the_machine_is_enough_and_a_byte_less_is_not(
    family: str, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the largest step takes beside it, as long as the machine has that."""
    path, left = tiny_models.path(family), 1 << 30
    need = need_of(permitted(path))
    monkeypatch.setattr("dodona.runners.device.host_memory.available_memory", lambda: left)
    enough = permitted(path, gpu_memory_utilization=(need + 0.5) / left)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    less = permitted(path, gpu_memory_utilization=(need - 0.5) / left)
    refused_alike(less, "raise gpu_memory_utilization")


def test_a_context_that_a_cpu_has_no_blocks_for(tiny_models: TinyModels, monkeypatch: Any) -> None:
    """Unless it is told, V1 takes so much and no more for KV blocks on a CPU."""
    monkeypatch.setattr("dodona.runners.v1.memory.CPU_KV_LIMIT", 1000)
    refused_alike(permitted(tiny_models.path("llama")), "raise gpu_memory_utilization")


def test_weights_that_are_converted_leave_less_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial load reads none, and knows what they will take."""
    path, left = CHECKPOINTS / "qwen3", 1 << 30
    monkeypatch.setattr("dodona.runners.device.host_memory.available_memory", lambda: left)

    def most(**flat: Any) -> int:
        return tried(permitted(path, gpu_memory_utilization=1e-5, **flat)).most_available_memory()

    files = sum(tensor.numel() for tensor in load_file(path / "model.safetensors").values())
    assert most(dtype="bfloat16") == int(left * 1e-5)  # they stay in their file
    assert most(dtype="float32") == int((left - 4 * files) * 1e-5)


@pytest.mark.parametrize(
    ("family", "flat"),
    [
        ("gemma2", {}),
        ("gpt-oss", {}),
        ("mistral", {}),
        ("gemma3", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}),
        ("gemma3", {"compilation_config": {"mode": "STOCK_TORCH_COMPILE"}}),  # not yet on the device
        ("gemma3", {"kv_offloading_size": 0.5}),
    ],
    ids=str,
)
def test_steps_on_a_device_have_blocks_of_all_layers(
    family: str, flat: dict[str, Any], tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_serving, "_check", lambda *_: None)
    verdict = permitted(tiny_models.path(family), **flat)
    on_host = tried(verdict).get_kv_cache_spec()
    assert on_host == loaded(verdict).get_kv_cache_spec()
    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: True)
    start, trial = loaded(verdict), tried(verdict)
    on_device = trial.get_kv_cache_spec()
    assert on_device == start.get_kv_cache_spec()
    assert trial.most_available_memory() == trial.get_kv_cache_spec().most_useful_bytes(trial.limits)
    changes = start.max_steps_in_flight > 1 or "speculative_config" in flat
    assert on_device.windows_apart == (on_host.windows_apart and not changes)
    assert "compilation_config" not in flat or on_device.windows_apart


def test_steps_that_a_start_finds_wrong_on_a_device_need_no_more(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise UnsupportedConfiguration("steps differ")

    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: True)
    sizes = {"max_model_len": 256, "max_num_seqs": 1, "max_num_batched_tokens": 8}
    verdict = permitted(tiny_models.path("gemma2"), **sizes)
    trial = tried(verdict)
    monkeypatch.setattr(device_serving, "_check", fails)
    start = loaded(verdict)
    limits = start.limits
    by_start, by_trial = (runner.get_kv_cache_spec().most_useful_bytes(limits) for runner in (start, trial))
    assert by_start < by_trial


def test_blocks_that_all_fit_but_not_together(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would give each layer its memory, and end the process that writes to all of it."""
    path, host = tiny_models.path("llama"), 1 << 30
    monkeypatch.setattr("dodona.runners.machine.host_memory", lambda: host / 2**30)
    block = loaded(permitted(path)).get_kv_cache_spec().bytes_per_block
    count = host // (block + SCHEDULER_BYTES)
    LLM.from_verdict(permitted(path, num_gpu_blocks_override=count)).shutdown()
    more = permitted(path, num_gpu_blocks_override=count + 1)
    refused_alike(more, "can't be allocated: with inner states, offloaded blocks and tables it takes")
    beside = permitted(path, num_gpu_blocks_override=count, kv_offloading_size=0.1)
    refused_alike(beside, "it takes 1.1 GiB, and the machine has 1 GiB.*lower .*kv_offloading_size")


def test_a_scheduler_takes_at_least_what_is_counted() -> None:
    count = 1 << 20
    tracemalloc.start()
    blocks = KVBlocks(count, 16)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert blocks.num_free == count
    assert SCHEDULER_BYTES * count <= taken < 1.5 * SCHEDULER_BYTES * count


def test_blocks_that_no_machine_has_room_for(tiny_models: TinyModels) -> None:
    refused_alike(
        permitted(tiny_models.path("gemma3n"), num_gpu_blocks_override=10**14), "can't be allocated"
    )


def test_blocks_without_memory_are_no_more_than_requests_need(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    for path in (tiny_models.path("mamba"), of_type("bloom", tmp_path)):
        verdict = permitted(path, num_gpu_blocks_override=10**14)
        assert try_load(verdict) is None
        LLM.from_verdict(verdict).shutdown()


@pytest.mark.parametrize("family", ["llama", "gemma3n", "deepseek-v3"])
def test_memory_for_offloaded_blocks_holds_one(family: str, tiny_models: TinyModels) -> None:
    path = tiny_models.path(family)
    block = loaded(permitted(path, kv_offloading_size=1.0)).get_kv_cache_spec().bytes_per_block
    enough = permitted(path, kv_offloading_size=block / 2**30)
    assert try_load(enough) is None
    LLM.from_verdict(enough).shutdown()
    less = {"kv_offloading_size": (block - 1) / 2**30}
    if family == "llama":
        with pytest.raises(UnsupportedConfiguration, match=f"a KV block takes {block}; raise it"):
            permitted(path, **less)
    else:
        refused_alike(permitted(path, **less), f"hold no KV block of {block} bytes")


def test_memory_for_shared_blocks_holds_one(tiny_models: TinyModels, tmp_path: Path) -> None:
    def shared(memory_bytes: int) -> Verdict:
        extra = {"shared_memory_path": str(tmp_path / "kv"), "memory_bytes": memory_bytes}
        transfer = {"kv_connector": "SharedMemoryConnector", "kv_role": "kv_both"}
        flat = {"kv_transfer_config": {**transfer, "kv_connector_extra_config": extra}}
        return permitted(tiny_models.path("llama"), **flat)

    block = loaded(shared(1 << 20)).get_kv_cache_spec().bytes_per_block
    assert try_load(shared(block)) is None
    refused_alike(shared(block - 1), f"holds no KV block of {block} bytes")
    assert not (tmp_path / "kv").exists() or not list((tmp_path / "kv").iterdir())
