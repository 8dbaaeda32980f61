"""The sizes, device and type that a runner works with, resolved once from configuration and config.json.

`resolve_limits` is the only place where "auto" and unset values of these become values, by
`oracle.systems.own.lengths`, which rules read too: start-up calls it before it builds the runner, and hands
the result down. `size_kv_cache` counts the KV blocks once the model is loaded.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dodona.oracle.systems.own.lengths import (
    checked_dtype,
    resolved_max_model_len,
    resolved_max_num_batched_tokens,
    step_fault,
)
from dodona.runners.errors import EngineSetupError
from dodona.runners.third_party import first_line

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo

logger = logging.getLogger("dodona.engine")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a runner may use and must hold. Made by `resolve_limits`; every value is final."""

    device: str
    """"cpu" or "cuda"."""
    dtype: str
    """Type of weights, activations and KV: "float32", "bfloat16" or "float16"."""
    max_model_len: int
    """Most tokens of a sequence, prompt and output together."""
    max_num_seqs: int
    """Most sequences in a step, and state rows."""
    max_num_batched_tokens: int
    """Most tokens of a step."""
    block_size: int
    """Tokens per KV block."""
    kv_cache_memory_bytes: int | None
    """Bytes for KV blocks; None: what the runner measures."""
    gpu_memory_utilization: float
    """Share in (0, 1]: of a GPU's memory, what weights, activations and KV may take together; of what a host
    has left beside the weights, what KV may take."""
    ranks_on_host: int = 1
    """Ranks, those of all replicas, among which the host's memory is divided: 1 on a GPU, which is a rank's
    own."""


def resolve_limits(config: EngineConfig, model: ModelInfo) -> Limits:
    """The limits of a configuration for a model, on the machine as torch sees it.

    device: as configured; "auto" is "cuda" where torch sees a GPU.
    dtype: as configured; "auto" is the fact `model_config.dtype`: config.json's type, but float32 on a CPU.
    max_model_len: as configured, else config.json's `max_position_embeddings`, else 2048, with a warning;
        for pooling at most the `max_seq_length` of the model's Sentence Transformers files.
    max_num_batched_tokens: as configured, else 16384 on a GPU and 2048 on a CPU; for pooling at least
        `max_model_len`, so that a prompt is computed in one step.

    Raises ConfigError for a type that can't be computed in, and for a `max_model_len` beyond the model's
    positions; EngineSetupError where a step can't hold a whole prompt and prompts may not be chunked.
    """
    device = _device(config)
    scheduler, cache = config.scheduler_config, config.cache_config
    dtype, max_model_len = checked_dtype(config, model, device), resolved_max_model_len(config, model)
    if config.model_config.max_model_len is None and model.max_position_embeddings is None:
        logger.warning(
            "%s has no max_position_embeddings; max_model_len is taken to be %d", model.file, max_model_len
        )
    fault = step_fault(config, model, device, max_model_len)
    if fault is not None:
        raise EngineSetupError(fault)
    return Limits(
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=resolved_max_num_batched_tokens(config, model, device, max_model_len),
        block_size=cache.block_size,
        kv_cache_memory_bytes=cache.kv_cache_memory_bytes,
        gpu_memory_utilization=cache.gpu_memory_utilization,
        ranks_on_host=config.parallel_config.world_size_across_dp if device == "cpu" else 1,
    )


def _device(config: EngineConfig) -> str:
    if config.device_config.device != "auto":
        return config.device_config.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class KVSize:
    """How many KV blocks there are, and the longest sequence that they hold."""

    num_blocks: int
    max_model_len: int


def size_kv_cache(
    config: EngineConfig,
    limits: Limits,
    *,
    bytes_per_block: int,
    determine_available_memory: Callable[[], int],
    block_size: int | None = None,
    state_bytes_per_row: int = 0,
    window_groups: Sequence[tuple[int, int]] = (),
    most_blocks_per_row: int | None = None,
    shares_prefixes: bool = True,
) -> KVSize:
    """KV blocks: `num_gpu_blocks_override`, else as many as fit into `kv_cache_memory_bytes`, else into the
    bytes that `determine_available_memory` returns, which is called only then. Inner states of
    `max_num_seqs` rows come first, `state_bytes_per_row` each. Where a block takes no bytes, because no layer
    has keys and values, there are as many as `max_num_seqs` requests can need.

    They must hold one sequence of `max_model_len`. Where they don't and max_model_len was not configured,
    it is lowered, with a warning; else EngineSetupError.

    block_size: tokens of a block; None is `limits.block_size`.
    window_groups: for each group of layers with window blocks, the most that can be used, and the bytes of
    one. There are as many as KV blocks, or as many as can be used, if that is less.
    most_blocks_per_row: blocks that suffice for a sequence of any length; None: as many as hold it whole.
    shares_prefixes: whether blocks keep prefixes that no request uses. Where they don't, there are no more
    than requests can need.
    """
    block_size = block_size or limits.block_size
    # Admission leaves a block for each running request to grow into.
    most_used = 2 * limits.max_num_seqs * -(-limits.max_model_len // block_size)
    if config.cache_config.num_gpu_blocks_override is not None:
        num_blocks = config.cache_config.num_gpu_blocks_override
        source = f"num_gpu_blocks_override={num_blocks}"
        mend = "raise num_gpu_blocks_override"
    else:
        if limits.kv_cache_memory_bytes is not None:
            available = limits.kv_cache_memory_bytes
            source = f"kv_cache_memory_bytes={available} "
            mend = "raise kv_cache_memory_bytes"
        else:
            available, source = max(0, determine_available_memory()), ""
            mend = "raise gpu_memory_utilization, or lower max_num_batched_tokens"
        states = limits.max_num_seqs * state_bytes_per_row
        if states > available:
            raise EngineSetupError(
                f"{source}{available / 2**20:.3f} MiB hold no inner states of max_num_seqs="
                f"{limits.max_num_seqs} rows, which take {states / 2**20:.3f} MiB; {mend}, or lower "
                "max_num_seqs"
            )
        if bytes_per_block:
            sizes = (
                f"{(available - states) / 2**20:.3f} MiB for KV blocks of {bytes_per_block / 2**20:.3f} MiB"
            )
            num_blocks = _most_blocks(available - states, bytes_per_block, window_groups)
        else:
            num_blocks = most_used
            sizes = "KV blocks without keys and values"
        source = f"{source}({sizes})" if source else sizes
    if not shares_prefixes:
        num_blocks = min(num_blocks, most_used)
    room = num_blocks * block_size
    if room >= limits.max_model_len or (most_blocks_per_row and num_blocks >= most_blocks_per_row):
        return KVSize(num_blocks, limits.max_model_len)
    if config.model_config.max_model_len is not None or room < 2:
        raise EngineSetupError(
            f"{source} hold {room} tokens, less than one sequence of max_model_len={limits.max_model_len}; "
            f"{mend}, or lower max_model_len"
        )
    logger.warning(
        "max_model_len is lowered from %d to %d: %s hold no more", limits.max_model_len, room, source
    )
    return KVSize(num_blocks, room)


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory"  # of devices, and of a host
    r"|Storage size calculation overflowed|integer multiplication overflow|Overflow when unpacking long"
)
"""What torch says of memory that can't be had, and of sizes that no memory has."""


@contextmanager
def allocating(what: str, mend: str) -> Iterator[None]:
    """Turn errors of memory that can't be had into EngineSetupError: `what`, the cause, `mend`. Other errors
    stay as they are."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # torch's of sizes above 2^63
        if isinstance(error, (RuntimeError, TypeError)) and not _NO_MEMORY.search(str(error)):
            raise
        raise EngineSetupError(f"{what} can't be allocated: {first_line(error)}; {mend}") from error


def _most_blocks(available: int, bytes_per_block: int, window_groups: Sequence[tuple[int, int]]) -> int:
    """The most KV blocks that fit into `available` bytes together with their window blocks."""

    def fits(count: int) -> bool:
        windows = sum(min(count, most) * size for most, size in window_groups)
        return count * bytes_per_block + windows <= available

    # The first number that doesn't fit, less one: what it takes grows with the number.
    return bisect_left(range(available // bytes_per_block + 1), True, key=lambda n: not fits(n + 1))
