"""Sizes that follow from configuration, model and memory: sequence length, tokens of a step, KV blocks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dodona.oracle.errors import ConfigError
from dodona.oracle.systems.own.facts import resolved_dtype
from dodona.runners.errors import EngineSetupError

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo

logger = logging.getLogger("dodona.engine")

DEFAULT_BATCHED_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Most tokens of a step where the configuration doesn't say, by device."""


def resolve_max_model_len(config: EngineConfig, model: ModelInfo) -> int:
    """Longest sequence in tokens: as configured, else config.json's `max_position_embeddings`.

    Raises ConfigError when more is asked than the model has positions for, or when neither says.
    """
    asked, possible = config.model_config.max_model_len, model.max_position_embeddings
    if asked is None:
        if possible is None:
            raise ConfigError(f"{model.file} has no max_position_embeddings; give max_model_len")
        return possible
    if possible is not None and asked > possible:
        raise ConfigError(
            f"max_model_len={asked} is over the {possible} positions (max_position_embeddings) of "
            f"{model.file}; give at most {possible}"
        )
    return asked


def resolve_max_num_batched_tokens(config: EngineConfig, device_type: str) -> int:
    """Most tokens of a step: as configured, else 16384 on a GPU and 2048 on a CPU."""
    return config.scheduler_config.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[device_type]


def resolve_device_type(config: EngineConfig) -> str:
    """ "cuda" or "cpu": as configured; "auto" is a GPU if torch sees one."""
    if config.device_config.device != "auto":
        return config.device_config.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a configuration leaves open, resolved for one model and machine."""

    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float


def resolve_limits(config: EngineConfig, model: ModelInfo) -> Limits:
    """The limits of a configuration with one model."""
    device = resolve_device_type(config)
    return Limits(
        device=device,
        dtype=str(resolved_dtype(config, model, device)),
        max_model_len=resolve_max_model_len(config, model),
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_num_batched_tokens=resolve_max_num_batched_tokens(config, device),
        block_size=config.cache_config.block_size,
        kv_cache_memory_bytes=config.cache_config.kv_cache_memory_bytes,
        gpu_memory_utilization=config.cache_config.gpu_memory_utilization,
    )


@dataclass(frozen=True, slots=True)
class KVSize:
    """How many KV blocks there are, and the longest sequence that they hold."""

    num_blocks: int
    max_model_len: int


def size_kv_cache(
    config: EngineConfig, *, max_model_len: int, bytes_per_block: int, available_bytes: int | None
) -> KVSize:
    """KV blocks: `num_gpu_blocks_override`, or as many as fit into `available_bytes`.

    They must hold one sequence of `max_model_len`. Where they don't and max_model_len was not configured,
    it is lowered, with a warning; else EngineSetupError.
    """
    cache = config.cache_config
    if cache.num_gpu_blocks_override is not None:
        num_blocks = cache.num_gpu_blocks_override
        source = f"num_gpu_blocks_override={num_blocks}"
        mend = "raise num_gpu_blocks_override"
    else:
        assert available_bytes is not None
        num_blocks = max(0, available_bytes) // bytes_per_block
        given = cache.kv_cache_memory_bytes is not None
        source = f"{available_bytes / 2**20:.3f} MiB for KV blocks of {bytes_per_block / 2**20:.3f} MiB"
        source = f"kv_cache_memory_bytes={available_bytes} ({source})" if given else source
        mend = (
            "raise kv_cache_memory_bytes"
            if given
            else "raise gpu_memory_utilization, or lower max_num_batched_tokens"
        )
    room = num_blocks * cache.block_size
    if room >= max_model_len:
        return KVSize(num_blocks, max_model_len)
    if config.model_config.max_model_len is not None or room < 2:
        raise EngineSetupError(
            f"{source} hold {room} tokens, less than one sequence of max_model_len={max_model_len}; "
            f"{mend}, or lower max_model_len"
        )
    logger.warning("max_model_len is lowered from %d to %d: %s hold no more", max_model_len, room, source)
    return KVSize(num_blocks, room)
