"""Limits and sizes: where each value comes from, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.errors import EngineSetupError
from dodona.runners.limits import KVSize, Limits, allocating, resolve_limits, size_kv_cache

CONFIG_JSON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
MODEL = ModelInfo.from_mapping(CONFIG_JSON)


def limits_of(model: ModelInfo = MODEL, **flat: Any) -> Limits:
    return resolve_limits(EngineConfig.from_flat("m", **flat), model)


@pytest.mark.parametrize(
    ("device", "dtype", "max_num_batched_tokens"), [("cuda", "bfloat16", 16384), ("cpu", "float32", 2048)]
)
@pytest.mark.parametrize("configured", [True, False])
def test_what_follows_from_the_device(
    device: str, dtype: str, max_num_batched_tokens: int, configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    limits = limits_of(device=device if configured else "auto")
    assert limits == Limits(
        device=device,
        dtype=dtype,
        max_model_len=512,
        max_num_seqs=EngineConfig.from_flat("m").scheduler_config.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=16,
        kv_cache_memory_bytes=None,
        gpu_memory_utilization=EngineConfig.from_flat("m").cache_config.gpu_memory_utilization,
    )


def test_a_configured_device_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked for a GPU"))
    assert limits_of(device="cpu").device == "cpu"


def test_what_is_configured_stands() -> None:
    configured = {
        "device": "cpu",
        "dtype": "float16",
        "max_model_len": 100,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 33,
        "block_size": 8,
        "kv_cache_memory_bytes": 12345,
        "gpu_memory_utilization": 0.25,
    }
    assert limits_of(**configured) == Limits(**configured)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits_of().max_model_len = 1  # type: ignore[misc]


@pytest.mark.parametrize(("given", "taken"), [(None, 2048), (9, 9), (10**6, 10**6)])
def test_config_json_without_a_length(
    given: int | None, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM takes 2048 where nothing says how long sequences may be (Mamba, BLOOM)."""
    endless = ModelInfo.from_mapping({**CONFIG_JSON, "max_position_embeddings": None})
    assert limits_of(endless, max_model_len=given).max_model_len == taken
    assert ("max_model_len is taken to be 2048" in caplog.text) == (given is None)


def test_more_than_the_models_positions() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=513 is over the 512 positions .*at most 512"):
        limits_of(max_model_len=513)


def test_a_type_that_cannot_be_computed_in() -> None:
    double = ModelInfo.from_mapping({**CONFIG_JSON, "torch_dtype": "float64"})
    with pytest.raises(ConfigError, match=r"field 'dtype': no computing in 'float64'; set dtype to bfloat16"):
        limits_of(double, device="cuda")
    assert limits_of(double, device="cpu").dtype == "float32"
    assert limits_of(double, device="cuda", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize(("max_num_batched_tokens", "fits"), [(511, False), (512, True)])
def test_whole_prompts_must_fit_into_a_step(max_num_batched_tokens: int, fits: bool) -> None:
    flat = {"max_num_batched_tokens": max_num_batched_tokens, "enable_chunked_prefill": False}
    if fits:
        assert limits_of(**flat).max_num_batched_tokens == 512
    else:
        with pytest.raises(EngineSetupError, match="max_num_batched_tokens=511 is below max_model_len=512"):
            limits_of(**flat)


# --- KV blocks


def size(determine: Callable[[], int], *, bytes_per_block: int = 100, **flat: Any) -> KVSize:
    config = EngineConfig.from_flat("m", device="cpu", block_size=4, **flat)
    limits = resolve_limits(config, MODEL)
    return size_kv_cache(
        config, limits, bytes_per_block=bytes_per_block, determine_available_memory=determine
    )


def test_blocks_that_keep_no_prefixes_are_no_more_than_requests_need() -> None:
    config = EngineConfig.from_flat(
        "m", device="cpu", block_size=4, max_num_seqs=3, num_gpu_blocks_override=900
    )
    limits = resolve_limits(config, MODEL)
    for shares, expected in ((True, 900), (False, 2 * 3 * 512 // 4)):
        found = size_kv_cache(
            config,
            limits,
            bytes_per_block=100,
            determine_available_memory=unasked,
            shares_prefixes=shares,
        )
        assert found == KVSize(expected, 512)


def unasked() -> int:
    raise AssertionError("memory was measured though the number of blocks is configured")


def test_memory_is_measured_only_where_nothing_says_it() -> None:
    assert size(lambda: 12899) == KVSize(128, 512)
    assert size(unasked, kv_cache_memory_bytes=13000) == KVSize(130, 512)
    assert size(unasked, num_gpu_blocks_override=140, kv_cache_memory_bytes=1) == KVSize(140, 512)


@pytest.mark.parametrize(
    ("available", "length"), [(12800, 512), (12799, 508), (100, 4), (99, None), (0, None), (-1000, None)]
)
def test_a_length_that_was_not_configured_is_lowered(
    available: int, length: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    if length is None:
        with pytest.raises(EngineSetupError, match="hold 0 tokens, less than one sequence"):
            size(lambda: available)
        return
    assert size(lambda: available) == KVSize(available // 100, length)
    assert ("lowered" in caplog.text) == (length < 512)


def test_a_configured_length_is_not_lowered() -> None:
    assert size(lambda: 500, max_model_len=20) == KVSize(5, 20)
    with pytest.raises(EngineSetupError, match=r"hold 20 tokens, .*raise gpu_memory_utilization"):
        size(lambda: 500, max_model_len=21)


@pytest.mark.parametrize("size", [2**50, 2**62, 2**64, 10**30])
def test_memory_that_cant_be_had_is_named(size: int) -> None:
    for fails in (lambda: torch.zeros(size), lambda: torch.empty(2, size, 4), lambda: bytearray(size)):
        with (
            pytest.raises(EngineSetupError, match=r"a cache can't be allocated: .*; lower it"),
            allocating("a cache", "lower it"),
        ):
            fails()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 139 GiB"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_memory_that_a_device_lacks_is_named(error: Exception) -> None:
    with pytest.raises(EngineSetupError, match="out of memory"), allocating("a cache", "lower it"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        TypeError("zeros() received an invalid combination of arguments"),
        EngineSetupError("hold no KV block"),
        ValueError("expected 2 blocks"),
    ],
)
def test_other_errors_are_not_missing_memory(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, allocating("a cache", "lower it"):
        raise error
    assert caught.value is error
