"""From a configuration to the two sides of its KV connector."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dodona.oracle.systems.own.kv_transfer import (
    KVTransferSettings,
    OffloadingSettings,
    SharedMemorySettings,
    SharedStorageSettings,
    resolve_kv_transfer,
)
from dodona.runners.errors import EngineSetupError
from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.connector import KVConnectorScheduler, KVConnectorWorker
from dodona.runners.kv_transfer.folders import make_folder
from dodona.runners.kv_transfer.offloading.slots import HostSlots
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.shared_memory.arena import Arena, create_arena
from dodona.runners.kv_transfer.shared_memory.index import OtherArenas, OwnSlots, SharedMemoryIndex
from dodona.runners.kv_transfer.shared_memory.scheduler import SharedMemoryScheduler
from dodona.runners.kv_transfer.storage.fingerprint import (
    ModelIdentity,
    SharedModel,
    cache_fingerprint,
    namespace,
)
from dodona.runners.kv_transfer.storage.index import StorageIndex
from dodona.runners.kv_transfer.storage.paths import is_stored

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.interface import KVCacheSpec, KVPart, Runner

logger = logging.getLogger("dodona.kv_transfer")


@dataclass(frozen=True, slots=True)
class KVTransferPlan:
    """A configuration's connector, before the model is loaded."""

    config: EngineConfig
    runner: str
    settings: KVTransferSettings | None
    shared: SharedModel | None
    """The model as its files were then, where the connector shares KV."""

    def scheduler_connector(self, runner: Runner) -> KVConnectorScheduler:
        """The scheduler's side, for the blocks of a runner that has loaded the model.

        Raises EngineSetupError where the connector has no room for a block.
        """
        settings = self.settings
        if settings is None:
            return KVConnectorScheduler()
        spec, parts = runner.get_kv_cache_spec(), runner.get_kv_parts()
        check_room(settings, spec, parts)
        if isinstance(settings, OffloadingSettings):
            index = HostSlots(settings.cpu_bytes // spec.bytes_per_block)
            return BlockTransferScheduler(index, block_size=spec.block_size)
        folder, namespace_of = self._namespaces(cache_fingerprint(parts[0].layers, spec, runner.limits.dtype))
        root, layers = settings.path, parts[0].layers
        if isinstance(settings, SharedStorageSettings):
            return BlockTransferScheduler(
                StorageIndex(
                    folder,
                    lambda path: is_stored(root, path, layers),
                    namespace_of=namespace_of,
                    loads=settings.loads,
                    stores=settings.stores,
                ),
                block_size=spec.block_size,
            )
        arena = None if settings.memory_bytes is None else _make_arena(settings, spec, parts)
        memory_index = SharedMemoryIndex(
            folder,
            own=None if arena is None else OwnSlots(arena),
            others=None
            if settings.wait_seconds is None
            else OtherArenas(root, None if arena is None else arena.path.name),
            namespace_of=namespace_of,
        )
        return SharedMemoryScheduler(memory_index, arena, block_size=spec.block_size)

    def _namespaces(self, cache: str) -> tuple[str, Callable[[Path | None], str] | None]:
        """What stands for the model, its weights and the cache, as the files were before the model was loaded
        and still are; and the same for other weights."""
        shared = self.shared
        if shared is not None and shared == SharedModel.of(self.config, self.runner):
            return namespace(shared.fingerprint, cache), partial(_namespace_of, shared.identity, cache)
        logger.warning("the model's files changed while they were loaded; its KV is not shared")
        return uuid.uuid4().hex, None


def _namespace_of(identity: ModelIdentity, cache: str, weights: Path | None) -> str:
    return namespace(identity.fingerprint(weights), cache)


def check_room(settings: KVTransferSettings | None, spec: KVCacheSpec, parts: Sequence[KVPart]) -> None:
    """Raise EngineSetupError where the connector's memory holds no block of a loaded model.

    parts: what each rank has of a block."""
    if isinstance(settings, OffloadingSettings) and settings.cpu_bytes < spec.bytes_per_block:
        raise EngineSetupError(
            f"kv_offloading_size: {settings.cpu_bytes} bytes hold no KV block of {spec.bytes_per_block} "
            "bytes; raise it"
        )
    if isinstance(settings, SharedMemorySettings) and settings.memory_bytes is not None:
        total = sum(size for _, size in _arena_sizes(spec, parts))
        if settings.memory_bytes < total:
            raise EngineSetupError(
                f"kv_connector_extra_config: memory_bytes {settings.memory_bytes} holds no KV block of "
                f"{total} bytes; raise it"
            )


def _arena_sizes(spec: KVCacheSpec, parts: Sequence[KVPart]) -> list[tuple[Region, int]]:
    """The regions that ranks hand to others, and the bytes of each in a block."""
    regions = [(Region.of(part), part.layers) for part in parts if part.is_writer]
    return [
        (region, region.elements(layers, spec.block_size) * spec.dtype_bytes) for region, layers in regions
    ]


def _make_arena(settings: SharedMemorySettings, spec: KVCacheSpec, parts: Sequence[KVPart]) -> Arena:
    sizes, memory = _arena_sizes(spec, parts), settings.memory_bytes or 0
    try:
        return create_arena(settings.path, memory // sum(size for _, size in sizes), sizes)
    except OSError as error:
        raise EngineSetupError(
            f"kv_connector_extra_config: no {memory} bytes of shared memory in {str(settings.path)!r}: "
            f"{error}; lower memory_bytes, or give /dev/shm more room"
        ) from error


def plan_kv_transfer(config: EngineConfig, runner: str) -> KVTransferPlan:
    """Check the configuration's connector, for a runner of this name.

    Raises what `resolve_kv_transfer`, `make_folder` and `SharedModel.of` raise.
    """
    settings, shared = resolve_kv_transfer(config), None
    make_folder(settings)
    if isinstance(settings, SharedStorageSettings | SharedMemorySettings):
        shared = SharedModel.of(config, runner)
    return KVTransferPlan(config, runner, settings, shared)


def make_worker_connector(config: EngineConfig) -> KVConnectorWorker:
    """The worker's side. Raises what `resolve_kv_transfer` raises."""
    settings = resolve_kv_transfer(config)
    if settings is None:
        return KVConnectorWorker()
    if isinstance(settings, OffloadingSettings):
        from dodona.runners.kv_transfer.offloading.worker import OffloadingWorker

        return OffloadingWorker(cpu_bytes=settings.cpu_bytes)
    if isinstance(settings, SharedMemorySettings):
        from dodona.runners.kv_transfer.shared_memory.worker import SharedMemoryWorker

        return SharedMemoryWorker(settings.path, wait_seconds=settings.wait_seconds or 0.0)
    from dodona.runners.kv_transfer.storage.block_files import BlockFiles
    from dodona.runners.kv_transfer.storage.worker import SharedStorageWorker

    return SharedStorageWorker(BlockFiles(settings.path, max_bytes=settings.max_bytes))
