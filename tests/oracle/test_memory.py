"""Whether weights and the smallest KV cache fit: counted from below, and exactly where it is said so."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dodona.oracle import UnsupportedConfiguration, select_runner
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine import memory as machine_memory
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.memory import least_kv_bytes, least_weight_bytes, memory_fault
from dodona.runners.errors import EngineSetupError
from dodona.runners.llm import LLM
from tests.support.tiny_models import TinyModels

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"
CPU = Environment(has_triton=False, platform="cpu", is_here=True)
GPU = Environment(has_triton=True, platform="cuda")


def of(function: Any, folder: Path, environment: Environment = CPU, **flat: Any) -> Any:
    return function(EngineConfig.from_flat(str(folder), **flat), ModelInfo.load(folder), environment)


def test_weights_are_counted_in_the_type_that_is_computed_in() -> None:
    elements = sum(tensor.numel() for tensor in load_file(QWEN3 / "model.safetensors").values())
    assert of(least_weight_bytes, QWEN3) == 4 * elements  # bfloat16 in the file, float32 on a CPU
    assert of(least_weight_bytes, QWEN3, dtype="bfloat16") == 0  # stays in the file
    assert of(least_weight_bytes, QWEN3, GPU) == 2 * elements
    assert of(least_weight_bytes, QWEN3, GPU, tensor_parallel_size=2) == elements
    assert of(least_weight_bytes, QWEN3, load_format="dummy") == 0


def test_a_machine_that_is_too_small_is_refused_with_both_figures() -> None:
    weights = of(least_weight_bytes, QWEN3)
    kv = of(least_kv_bytes, QWEN3, max_model_len=64)
    need = (weights + kv / 0.9) / 2**30
    assert of(memory_fault, QWEN3, replace(CPU, host_memory=need * 1.001), max_model_len=64) is None
    small = replace(CPU, host_memory=need * 0.999)
    fault = of(memory_fault, QWEN3, small, max_model_len=64)
    assert f"weights take {weights / 2**30:.4g} GiB, KV blocks {kv / 2**30:.4g} GiB" in fault
    with pytest.raises(UnsupportedConfiguration, match=r"\[memory\]"):
        select_runner(EngineConfig.from_flat(str(QWEN3), max_model_len=64), environment=small)
    assert of(memory_fault, QWEN3, CPU) is None  # of a machine whose memory nobody knows
    gpu = replace(GPU, memory=of(least_weight_bytes, QWEN3, GPU) / 2**30)
    assert "a GPU has" in of(memory_fault, QWEN3, gpu)
    assert of(memory_fault, QWEN3, replace(gpu, memory=2 * gpu.memory)) is None


@pytest.mark.parametrize(
    ("sizes", "weights_of", "kv_of"),
    [
        ({"tensor_parallel_size": 2}, 1, 1),
        ({"data_parallel_size": 3}, 3, 3),
        ({"prefill_context_parallel_size": 2}, 2, 1),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2}, 2, 2),
    ],
    ids=str,
)
def test_the_ranks_of_all_replicas_share_a_cpus_memory(
    sizes: dict[str, int], weights_of: int, kv_of: int
) -> None:
    blocks = {"max_model_len": 64, "block_size": 4096}  # larger than weights
    weights, kv = of(least_weight_bytes, QWEN3), of(least_kv_bytes, QWEN3, **blocks)
    ranks = math.prod(sizes.values())
    for given, need in (
        (None, weights_of * weights + kv_of * kv / 0.9),
        (kv, weights_of * weights + ranks * kv),
    ):
        flat = {"kv_cache_memory_bytes": given, **blocks, **sizes}
        enough, less = (replace(CPU, host_memory=need * part / 2**30) for part in (1.001, 0.999))
        assert of(memory_fault, QWEN3, enough, **flat) is None
        fault = of(memory_fault, QWEN3, less, **flat)
        assert f"weights of {ranks} ranks take {weights_of * weights / 2**30:.4g} GiB" in fault
        gpus = replace(GPU, memory=1.0, host_memory=less.host_memory)
        assert of(memory_fault, QWEN3, gpus, **flat) is None  # each has its own


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_rank_reads_the_whole_model(replicas: int) -> None:
    sizes = {"tensor_parallel_size": 2, "data_parallel_size": replicas}
    need = of(least_weight_bytes, QWEN3) * (1 + (2 * replicas - 1) / 2)
    flat = {"max_model_len": 1, "block_size": 1, **sizes}
    enough, less = (replace(CPU, host_memory=need * part / 2**30) for part in (1.001, 0.999))
    assert of(memory_fault, QWEN3, enough, **flat) is None
    fault = of(memory_fault, QWEN3, less, **flat)
    assert f"to read the weights {2 * replicas} ranks take {need / 2**30:.4g} GiB" in fault
    on_gpus = replace(GPU, memory=less.host_memory, host_memory=less.host_memory)
    assert of(memory_fault, QWEN3, on_gpus, **flat) is None
    in_files = {"dtype": "bfloat16", **flat}  # ranks share what the system keeps of them
    assert of(memory_fault, QWEN3, less, **in_files) is None


def test_bytes_that_blocks_counted_by_hand_replace_are_not_needed() -> None:
    machine = replace(CPU, host_memory=8.0)
    assert of(memory_fault, QWEN3, machine, kv_cache_memory_bytes=9 << 30) is not None
    flat = {"kv_cache_memory_bytes": 9 << 30, "num_gpu_blocks_override": 64}
    assert of(memory_fault, QWEN3, machine, **flat) is None


def test_memory_for_offloaded_blocks_holds_one_and_is_there() -> None:
    machine, model = replace(CPU, host_memory=8.0), ModelInfo.load(QWEN3)
    # Keys and values of 16 tokens in fp32; on each of two devices a half.
    block = 16 * 4 * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_size
    for size, world, fits in (
        (block, 1, True),
        (block - 1, 1, False),
        (block, 2, True),
        (block - 2, 2, False),
    ):
        flat = {"kv_offloading_size": size / 2**30, "tensor_parallel_size": world}
        fault = of(memory_fault, QWEN3, machine, **flat)
        assert (fault is None) == fits
        assert fits or f"a KV block takes {block // world}" in fault
    assert of(memory_fault, QWEN3, machine, kv_offloading_size=7.9) is None
    beside = of(memory_fault, QWEN3, machine, kv_offloading_size=8.0)
    assert "offloaded KV blocks 8 GiB, and the machine has 8 GiB" in beside
    gpu = replace(GPU, memory=80.0, host_memory=8.0)
    assert of(memory_fault, QWEN3, gpu, kv_offloading_size=8.0) is None  # weights are elsewhere
    both = of(memory_fault, QWEN3, gpu, kv_offloading_size=4.1, data_parallel_size=2)
    assert "takes 8.2 GiB" in both
    cluster = replace(gpu, ray_cluster=True)
    replicas = {"data_parallel_size": 2, "data_parallel_backend": "ray"}
    assert "takes 8.2 GiB" in of(memory_fault, QWEN3, gpu, kv_offloading_size=4.1, **replicas)
    assert of(memory_fault, QWEN3, cluster, kv_offloading_size=4.1, **replicas) is None
    assert "takes 8.1 GiB" in of(memory_fault, QWEN3, cluster, kv_offloading_size=8.1, **replicas)
    assert of(memory_fault, QWEN3, gpu, kv_offloading_size=4.1, tensor_parallel_size=2) is None
    assert "takes 9 GiB" in of(memory_fault, QWEN3, machine, kv_offloading_size=9.0)
    assert of(memory_fault, QWEN3, CPU, kv_offloading_size=9.0) is None  # nobody knows what it has
    transfer = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    transfer["kv_connector_extra_config"] = {"cpu_bytes_to_use": block - 1}
    assert "a KV block takes" in of(memory_fault, QWEN3, machine, kv_transfer_config=transfer)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"max_model_len": 200}),
        ("llama", {}),
        ("gemma3", {"max_model_len": 200, "max_num_seqs": 1}),
        ("mistral", {"max_model_len": 200}),
    ],
    ids=str,
)
def test_kv_cache_memory_bytes_are_enough_or_refused(
    family: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    folder = TinyModels(tmp_path).path(family)
    flat = {"device": "cpu", "block_size": 4, "max_num_batched_tokens": 8, **sizes}
    least = of(least_kv_bytes, folder, **flat)
    verdict = select_runner(EngineConfig.from_flat(str(folder), kv_cache_memory_bytes=least, **flat))
    with LLM.from_verdict(verdict) as llm:
        assert llm.max_model_len == sizes.get("max_model_len", 4)
    less = EngineConfig.from_flat(str(folder), kv_cache_memory_bytes=least - 1, **flat)
    with pytest.raises(UnsupportedConfiguration, match=f"kv_cache_memory_bytes={least - 1} is less than"):
        select_runner(less)
    with pytest.raises(EngineSetupError, match=f"less than the {least} bytes"):
        LLM.from_verdict(replace_config(verdict, less))


def replace_config(verdict: Any, config: EngineConfig) -> Any:
    return verdict.model_copy(update={"config": config})


def test_memory_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       8388608 kB\nMemAvailable:   4194304 kB\n")
    monkeypatch.setattr(machine_memory, "_MEMINFO", info)
    monkeypatch.setattr(machine_memory, "_GROUP", tmp_path)
    assert machine_memory.host_memory() == 8.0
    assert machine_memory.available_memory() == 4 << 30
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{3 << 30}\n")
    assert machine_memory.available_memory() == 4 << 30
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    assert machine_memory.host_memory() == 3.0
    assert machine_memory.available_memory() == 0
    # what files take in the page cache can be had again
    (tmp_path / "memory.stat").write_text(f"anon 5\nactive_file {1 << 29}\ninactive_file {1 << 29}\n")
    assert machine_memory.available_memory() == 1 << 30
