"""Weights that can't fit into a machine's memory, told from a checkpoint's index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle.machine.assumed import assumed_machine
from dodona.oracle.select import select_runner
from dodona.oracle.systems.vllm.weights import stored_bytes

BYTES = 141_107_412_992
"""Of Llama 3.3 70B in bfloat16: 131.4 GiB."""


def _refused(
    folder: Path,
    *flags: str,
    machine: str = "a100",
    size: int = BYTES,
    parameters: int | None = None,
    **more: Any,
) -> list[str]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config | more))
    told = {"total_size": size} | ({} if parameters is None else {"total_parameters": parameters})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": told, "weight_map": {}}))
    words = ["vllm", "serve", str(folder), *flags]
    verdict = select_runner(words, rulebook="vllm/0.30.0", environment=assumed_machine([machine]))
    return [refusal.rule for refusal in verdict.refusals]


@pytest.mark.parametrize(
    ("flags", "fits"),
    [
        ((), False),
        (("-tp", "2"), True),
        (("-pp", "2"), True),
        (("-tp", "2", "--gpu-memory-utilization", "0.7"), False),
        (("--cpu-offload-gb", "80"), True),
        (("--quantization", "fp8"), True),
        (("-dp", "2"), True),
    ],
)
def test_weights_need_a_share_of_each_device(tmp_path: Path, flags: tuple[str, ...], fits: bool) -> None:
    assert _refused(tmp_path, *flags) == ([] if fits else ["weights"])


def test_a_larger_device_or_an_unknown_one_refuses_nothing(tmp_path: Path) -> None:
    assert _refused(tmp_path, "-tp", "2", "--gpu-memory-utilization", "0.7", machine="h200") == []
    assert _refused(tmp_path, machine="xpu") == []


def test_single_precision_is_loaded_at_half_its_size(tmp_path: Path) -> None:
    assert _refused(tmp_path, "-tp", "2", size=2 * BYTES, torch_dtype="float32") == []
    assert _refused(tmp_path, "-tp", "2", size=2 * BYTES, parameters=BYTES // 2) == []
    assert _refused(tmp_path, "-tp", "2", size=2 * BYTES) == ["weights"]


def test_what_is_stored_and_not_loaded_is_not_counted(tmp_path: Path) -> None:
    assert _refused(tmp_path, num_nextn_predict_layers=1) == []
    assert _refused(tmp_path, "--runner", "pooling") == []
    tied = int(73.6 * 2**30 * 1.03) + 2 * 128256 * 8192
    assert _refused(tmp_path, size=tied, tie_word_embeddings=True) == []
    assert _refused(tmp_path, size=tied, tie_word_embeddings=False) == ["weights"]


@pytest.mark.parametrize(
    "size", ["1e999", "-1e999", "NaN", "-1", "0", "true", '"141107412992"', "null", "1e300"]
)
def test_a_size_that_is_none_says_nothing(tmp_path: Path, size: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(f'{{"metadata": {{"total_size": {size}}}, "weight_map": {{}}}}')
    assert stored_bytes(str(tmp_path)) is None
    index.write_text(f'{{"metadata": {{"total_size": 1e6, "total_parameters": {size}}}, "weight_map": {{}}}}')
    assert stored_bytes(str(tmp_path)) == (1_000_000, None)
