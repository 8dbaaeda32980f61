"""From a verdict to a runner that is ready to step, and its scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineSetupError
from dodona.runners.interface import Runner
from dodona.runners.limits import (
    KVSize,
    resolve_device_type,
    resolve_max_model_len,
    resolve_max_num_batched_tokens,
    size_kv_cache,
)

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.models.model_info import ModelInfo


def start(verdict: Verdict, model: ModelInfo) -> tuple[Runner, Scheduler, KVSize]:
    """Build the runner, load, measure, allocate, warm up and capture. Shuts the runner down if any of it
    fails.

    Raises ConfigError and EngineSetupError for sizes that can't be, and what the runner raises.
    """
    config = verdict.config
    cache, scheduler = config.cache_config, config.scheduler_config
    max_model_len = resolve_max_model_len(config, model)
    max_num_batched_tokens = resolve_max_num_batched_tokens(config, resolve_device_type(config))
    if not scheduler.enable_chunked_prefill and max_num_batched_tokens < max_model_len:
        raise EngineSetupError(
            f"without chunked prefill a step must hold a whole prompt, but max_num_batched_tokens="
            f"{max_num_batched_tokens} is below max_model_len={max_model_len}; raise the one, lower the "
            "other, or set enable_chunked_prefill=True"
        )
    runner = verdict.build()
    try:
        runner.load_model()
        spec = runner.get_kv_cache_spec()
        if cache.num_gpu_blocks_override is not None:
            available = None
        else:
            available = cache.kv_cache_memory_bytes or runner.determine_available_memory()
        size = size_kv_cache(
            config,
            max_model_len=max_model_len,
            bytes_per_block=spec.bytes_per_block,
            available_bytes=available,
        )
        runner.initialize_kv_cache(size.num_blocks, size.max_model_len)
        runner.warm_up()
        runner.capture_graphs()
    except BaseException:
        runner.shutdown()
        raise
    return (
        runner,
        Scheduler(
            num_blocks=size.num_blocks,
            block_size=spec.block_size,
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_chunked_prefill=scheduler.enable_chunked_prefill,
            enable_prefix_caching=cache.enable_prefix_caching,
        ),
        size,
    )
