"""From a configuration to the two sides of its KV connector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dodona.runners.kv_transfer.connector import (
    KVConnectorScheduler,
    KVConnectorWorker,
)
from dodona.runners.kv_transfer.offloading.scheduler import OffloadingScheduler
from dodona.runners.kv_transfer.settings import resolve_kv_transfer

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.interface import KVCacheSpec


def make_scheduler_connector(config: EngineConfig, spec: KVCacheSpec) -> KVConnectorScheduler:
    """The scheduler's side, for blocks as `spec` says. Raises what `resolve_kv_transfer` raises."""
    settings = resolve_kv_transfer(config)
    if settings is None:
        return KVConnectorScheduler()
    return OffloadingScheduler(num_slots=settings.num_slots(spec.bytes_per_block), block_size=spec.block_size)


def make_worker_connector(config: EngineConfig) -> KVConnectorWorker:
    """The worker's side. Raises what `resolve_kv_transfer` raises."""
    settings = resolve_kv_transfer(config)
    if settings is None:
        return KVConnectorWorker()
    from dodona.runners.kv_transfer.offloading.worker import OffloadingWorker

    return OffloadingWorker(cpu_bytes=settings.cpu_bytes)
