"""From a verdict to a runner that is ready to step, and its scheduler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from threading import Event
from typing import TYPE_CHECKING

from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.memory import memory_fault
from dodona.runners.build import build_runner
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineSetupError
from dodona.runners.interface import Runner
from dodona.runners.kv_room import allocate, gives_blocks_back, size_of
from dodona.runners.kv_transfer.connector import KVConnectorScheduler
from dodona.runners.kv_transfer.factory import plan_kv_transfer
from dodona.runners.limits import KVSize, Limits, allocating, resolve_limits
from dodona.runners.machine import torch_environment
from dodona.runners.phases import check_not_given_up, phase, wait_until
from dodona.runners.warm_up import warm_up

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.models.model_info import ModelInfo

logger = logging.getLogger("dodona.engine")


def checked_limits(config: EngineConfig, model: ModelInfo) -> Limits:
    """`resolve_limits`, and EngineSetupError where the machine's memory can't hold what they need."""
    limits = resolve_limits(config, model)
    fault = memory_fault(config, model, torch_environment(limits.device))
    if fault is not None:
        raise EngineSetupError(fault)
    return limits


def allocating_weights() -> AbstractContextManager[None]:
    """Inside, memory that can't be had is an EngineSetupError about weights."""
    return allocating("the model's weights", "choose a smaller model or dtype, or more devices or memory")


def start(
    verdict: Verdict,
    model: ModelInfo,
    replica: int = 0,
    given_up: Event | None = None,
    loaded: Sequence[Event] = (),
) -> tuple[Runner, Scheduler, KVSize]:
    """Resolve the limits, build the runner, load the model, size and allocate the KV cache, warm up and
    capture. Shuts the runner down if any of it fails.

    replica: number among `data_parallel_size`.
    given_up: once it is set, workers are ended at once, and the start after the part that is under way.
    loaded: one for each replica, where several start at the same time; a start sets its own.

    Raises what `resolve_limits`, `build_runner` and `size_kv_cache` raise, and what the runner raises.
    """
    config, limits = verdict.config, checked_limits(verdict.config, model)
    runner = build_runner(verdict, model, limits, replica=replica, given_up=given_up)
    kv_transfer = plan_kv_transfer(config, runner.name)
    connector = KVConnectorScheduler()
    try:
        with phase("load the model and check it"), allocating_weights():
            runner.load_model()
        if loaded:
            loaded[replica].set()
        # Replicas on a CPU share its memory: what is left of it is known once all have their weights.
        for each in loaded if limits.device == "cpu" else ():
            wait_until(each, given_up)
        check_not_given_up(given_up)
        spec = runner.get_kv_cache_spec()
        connector = kv_transfer.scheduler_connector(runner)
        with phase("size and allocate the KV cache"):
            size = size_of(config, limits, spec, runner.determine_available_memory)
            allocate(runner, spec, size)
        check_not_given_up(given_up)
        with phase("warm up, rehearse and capture"):
            if runner.pooling_settings is None:
                warm_up(runner)
            runner.capture_graphs()
    except BaseException:
        runner.shutdown()
        connector.shutdown()
        raise
    enable_prefix_caching = config.cache_config.enable_prefix_caching and runner.pooling_settings is None
    if enable_prefix_caching and not spec.shares_prefixes:
        enable_prefix_caching = False
        logger.warning(
            "prefix caching is off: what %s keeps of a prefix is not all in KV blocks, or depends on what "
            "follows the prefix",
            "/".join(model.architectures),
        )
    scheduler = Scheduler(
        num_blocks=size.num_blocks,
        block_size=spec.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        enable_chunked_prefill=config.scheduler_config.enable_chunked_prefill,
        # A pooling model's prompts are computed together where they are whole.
        max_unchunked_tokens=0 if runner.pooling_settings is None else limits.max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        num_speculative_tokens=runner.num_speculative_tokens,
        # A connector is told of tokens that are known.
        num_device_drafts=0 if has_active_connector(config) else runner.num_device_drafts,
        num_micro_batches=runner.num_micro_batches,
        max_loras=0 if config.lora_config is None else config.lora_config.max_loras,
        window=spec.groups[0].window if gives_blocks_back(config, spec) else None,
        window_groups=[
            (group.window or 0, count)
            for group, count in zip(
                spec.window_groups, spec.num_window_blocks(size.num_blocks, limits), strict=True
            )
        ],
        kv_connector=connector,
    )
    return runner, scheduler, size
