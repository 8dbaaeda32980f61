"""From a configuration to the two sides of its KV connector."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dodona.runners.errors import EngineSetupError
from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.connector import KVConnectorScheduler, KVConnectorWorker
from dodona.runners.kv_transfer.offloading.slots import HostSlots
from dodona.runners.kv_transfer.settings import (
    KVTransferSettings,
    OffloadingSettings,
    SharedStorageSettings,
    resolve_kv_transfer,
)
from dodona.runners.kv_transfer.storage.fingerprint import (
    ModelIdentity,
    SharedModel,
    cache_fingerprint,
    namespace,
)
from dodona.runners.kv_transfer.storage.index import StorageIndex
from dodona.runners.kv_transfer.storage.paths import is_stored
from dodona.runners.kv_transfer.storage.regions import Region

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.interface import Runner

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
        settings, shared = self.settings, self.shared
        if settings is None:
            return KVConnectorScheduler()
        spec = runner.get_kv_cache_spec()
        if isinstance(settings, OffloadingSettings):
            index = HostSlots(settings.num_slots(spec.bytes_per_block))
            return BlockTransferScheduler(index, block_size=spec.block_size)
        layers = runner.get_kv_part().layers
        cache = cache_fingerprint(layers, spec, runner.limits.dtype)
        folder, namespace_of = uuid.uuid4().hex, None
        if shared is not None and shared == SharedModel.of(self.config, self.runner):
            folder = namespace(shared.fingerprint, cache)
            namespace_of = partial(_namespace_of, shared.identity, cache)
        else:
            logger.warning("the model's files changed while they were loaded; its KV is not shared")
        root, whole = settings.path, Region(0, len(layers))
        return BlockTransferScheduler(
            StorageIndex(
                folder,
                lambda path: is_stored(root, path, whole),
                namespace_of=namespace_of,
                loads=settings.loads,
                stores=settings.stores,
            ),
            block_size=spec.block_size,
        )


def _namespace_of(identity: ModelIdentity, cache: str, weights: Path | None) -> str:
    return namespace(identity.fingerprint(weights), cache)


def plan_kv_transfer(config: EngineConfig, runner: str) -> KVTransferPlan:
    """Check the configuration's connector, for a runner of this name.

    Raises what `resolve_kv_transfer` and `SharedModel.of` raise, and EngineSetupError for a folder that
    can't be made.
    """
    settings, shared = resolve_kv_transfer(config), None
    if isinstance(settings, SharedStorageSettings):
        try:
            settings.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineSetupError(
                f"kv_connector_extra_config: shared_storage_path {str(settings.path)!r}: {error}"
            ) from error
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
    from dodona.runners.kv_transfer.storage.block_files import BlockFiles
    from dodona.runners.kv_transfer.storage.worker import SharedStorageWorker

    return SharedStorageWorker(BlockFiles(settings.path, max_bytes=settings.max_bytes))
