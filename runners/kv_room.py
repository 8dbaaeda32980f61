"""The KV cache that a start makes of a loaded model, and whether there is room for it: for starts, and for
trial loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.kv_transfer import resolve_kv_transfer
from dodona.oracle.systems.own.memory import offloaded_bytes
from dodona.runners.errors import EngineSetupError
from dodona.runners.kv_transfer.factory import check_room
from dodona.runners.limits import KVSize, Limits, allocating, size_kv_cache
from dodona.runners.machine import torch_environment

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.interface import KVCacheSpec, Runner

SCHEDULER_BYTES = 100
"""What a replica's scheduler takes for a KV block, at least."""

_GIB = 1 << 30


def gives_blocks_back(config: EngineConfig, spec: KVCacheSpec) -> bool:
    """Whether the blocks that no query sees any more are given back while a request runs.

    A connector may still have to read the blocks of a running request: then none are.
    """
    return bool(spec.layers) and not has_active_connector(config)


def size_of(
    config: EngineConfig, limits: Limits, spec: KVCacheSpec, determine_available_memory: Callable[[], int]
) -> KVSize:
    """`size_kv_cache` for a model's spec. Raises what it raises."""
    return size_kv_cache(
        config,
        limits,
        block_size=spec.block_size,
        bytes_per_block=spec.bytes_per_block,
        state_bytes_per_row=spec.state_bytes_per_row,
        window_groups=[
            (most, group.bytes_per_block)
            for most, group in zip(spec.most_window_blocks(limits), spec.window_groups, strict=True)
        ],
        most_blocks_per_row=spec.most_blocks_per_row(limits) if gives_blocks_back(config, spec) else None,
        determine_available_memory=determine_available_memory,
        shares_prefixes=spec.shares_prefixes,
    )


def allocate(runner: Runner, spec: KVCacheSpec, size: KVSize) -> None:
    """Make the runner's KV cache. Raises EngineSetupError where there is no memory for it."""
    what = f"a KV cache of {size.num_blocks} blocks of {spec.bytes_per_block} bytes"
    mend = "lower num_gpu_blocks_override, kv_cache_memory_bytes or gpu_memory_utilization"
    _check_host(runner, spec, size, what, mend)
    with allocating(what, mend):
        runner.initialize_kv_cache(size.num_blocks, size.max_model_len)


def _check_host(runner: Runner, spec: KVCacheSpec, size: KVSize, what: str, mend: str) -> None:
    """Raise EngineSetupError where a CPU's ranks and schedulers need more than the host has for KV, inner
    states and tables of blocks: the system gives them memory that is not there, and ends the process that
    writes to it.

    A rank with fewer layers than another counts as that one."""
    limits = runner.limits
    if limits.device != "cpu":
        return
    has = torch_environment(limits.device).host_memory
    of_rank = spec.kv_bytes(size.num_blocks, limits) + limits.max_num_seqs * spec.state_bytes_per_row
    offloaded = offloaded_bytes(runner.config)
    tables = size.num_blocks * SCHEDULER_BYTES * runner.config.parallel_config.data_parallel_size
    need = limits.ranks_on_host * of_rank + offloaded + tables
    if has is None or need <= has * _GIB:
        return
    ranks = f" on {limits.ranks_on_host} ranks" if limits.ranks_on_host > 1 else ""
    beside = ", kv_offloading_size or cpu_bytes_to_use" if offloaded else ""
    raise EngineSetupError(
        f"{what} can't be allocated: with inner states, offloaded blocks and tables{ranks} it takes "
        f"{need / _GIB:.4g} GiB, and the machine has {has:.4g} GiB; {mend}{beside}"
    )


def check_kv_room(runner: Runner) -> None:
    """Raise EngineSetupError, in the words of a start, where the configured sizes or the machine's memory
    can't hold the KV blocks and inner states of a model that `runner.try_load` loaded.

    To be called inside `meta_device.on_meta`, too. A GPU is not asked for memory."""
    spec = runner.get_kv_cache_spec()
    check_room(resolve_kv_transfer(runner.config), spec, runner.get_kv_parts())
    size = size_of(runner.config, runner.limits, spec, runner.most_available_memory)
    if runner.limits.device == "cpu":
        allocate(runner, spec, size)
