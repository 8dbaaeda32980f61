"""The worker's side of SharedStorageConnector: threads read and write the files beside the steps."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from dodona.runners.interface import KVConnectorMetadata, KVPart
from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockMetadata, Place, Transfer
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.storage.block_files import BlockFiles, DamagedBlockError
from dodona.runners.kv_transfer.storage.cache_copies import CacheCopies
from dodona.runners.kv_transfer.storage.stored_blocks import StoredBlocks

logger = logging.getLogger("dodona.kv_transfer")

READERS = 4
"""Threads that read files, and most parts that a load is split into."""

PENDING_BYTES = 1 << 30
"""Most bytes of blocks that wait to be written. More are not stored: a slow disk must not keep blocks of the
cache from others."""

_PART = 16
"""Most blocks that are copied at a time."""


@dataclass(frozen=True, slots=True)
class _Store:
    num_blocks: int
    copied: Future[None]
    """Done when the blocks were read."""


@dataclass(frozen=True, slots=True)
class _Cache:
    """What is known once there is a cache."""

    copies: CacheCopies
    blocks: StoredBlocks
    stores: bool
    """Whether this rank is the one that stores its part."""


class SharedStorageWorker(KVConnectorWorker):
    """Reads and writes this rank's part of blocks, below the files' root.

    A file that is missing, damaged or can't be read makes a load error, and its block is computed again; one
    that can't be written is lost. Nothing of it ends the engine.
    """

    def __init__(
        self, files: BlockFiles, *, readers: Executor | None = None, writer: Executor | None = None
    ) -> None:
        """readers, writer: run the jobs; None makes threads. Jobs of the writer run one at a time."""
        self._files = files
        self._readers = readers or ThreadPoolExecutor(READERS, thread_name_prefix="dodona-kv-read")
        self._writer = writer or ThreadPoolExecutor(1, thread_name_prefix="dodona-kv-write")
        self._cache: _Cache | None = None
        self._loads: dict[str, list[Future[set[int]]]] = {}
        """By request, the parts of its load; each returns the blocks that failed."""
        self._stores: dict[str, list[_Store]] = {}
        """By request, those that may be under way."""
        self._ended: set[str] = set()
        """Requests that ended and were not reported as sent."""
        self._failed: set[int] = set()
        self._has_warned = False

    def register_kv_caches(self, kv_caches: Sequence[LayerKV], part: KVPart) -> None:
        """Take the cache."""
        layout = BlockLayout(kv_caches)
        block_size = kv_caches[0].keys.shape[1]
        blocks = StoredBlocks(self._files, part, block_size=block_size, dtype=layout.dtype)
        self._cache = _Cache(CacheCopies(layout), blocks, part.is_writer)

    def release_kv_caches(self) -> None:
        """Wait for what reads or writes the cache, and let go of it."""
        wait([store.copied for store in itertools.chain(*self._stores.values())])
        wait(list(itertools.chain(*self._loads.values())))
        self._cache = None

    def handle_preemptions(self, metadata: KVConnectorMetadata) -> None:
        """Wait until the blocks of preempted requests were read."""
        for name in metadata.preempted_req_ids:
            wait([store.copied for store in self._stores.pop(name, ())])

    def start_load_kv(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's loads."""
        assert isinstance(metadata, BlockMetadata)
        for load in metadata.loads:
            cache = self._require_cache()
            mark = cache.copies.mark()
            size = max(1, min(_PART, -(-len(load.block_ids) // READERS)))
            self._loads[load.request_id] = [
                self._readers.submit(self._load, cache, ids, places, mark)
                for ids, places in _parts(load, size)
            ]

    def wait_for_save(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's stores; their blocks stay until they are reported."""
        assert isinstance(metadata, BlockMetadata)
        for store in metadata.stores:
            cache = self._require_cache()
            if not cache.stores:
                continue
            room = PENDING_BYTES // cache.copies.layout.bytes_per_block - self._num_pending
            if len(store.block_ids) > room:
                self._warn("KV blocks are not stored: the storage is too slow to take them all")
                continue
            copied: Future[None] = Future()
            self._writer.submit(self._store, cache, store, cache.copies.mark(), copied)
            self._stores.setdefault(store.request_id, []).append(_Store(len(store.block_ids), copied))

    def get_finished(self, finished_req_ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """See `KVConnectorWorker`."""
        self._ended.update(finished_req_ids)
        for name, stores in list(self._stores.items()):
            self._stores[name] = [store for store in stores if not store.copied.done()]
            if not self._stores[name]:
                del self._stores[name]
        sent = {name for name in self._ended if name not in self._stores}
        self._ended -= sent
        received = {name for name, parts in self._loads.items() if all(part.done() for part in parts)}
        for name in received:
            for part in self._loads.pop(name):
                self._failed |= part.result()
        return sent, received

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose file was missing or damaged."""
        failed, self._failed = self._failed, set()
        return failed

    def shutdown(self) -> None:
        """Finish what is under way. Idempotent."""
        self._readers.shutdown()
        self._writer.shutdown()
        self._cache = None

    def _require_cache(self) -> _Cache:
        if self._cache is None:
            raise RuntimeError("there is no KV cache: call register_kv_caches first")
        return self._cache

    @property
    def _num_pending(self) -> int:
        return sum(s.num_blocks for s in itertools.chain(*self._stores.values()) if not s.copied.done())

    def _load(
        self,
        cache: _Cache,
        block_ids: Sequence[int],
        paths: Sequence[Place],
        mark: torch.cuda.Event | None,
    ) -> set[int]:
        """Copy files into the cache, up to the first that fails; that one's block and those after it are
        returned. In a reader's thread."""
        blocks: list[torch.Tensor] = []
        for path in paths:
            try:
                block = cache.blocks.read(str(path))
            except (OSError, DamagedBlockError) as error:
                logger.info("KV block %s is computed again: %s", path, error)
                break
            blocks.append(block)
        if blocks:
            cache.copies.to_cache(block_ids[: len(blocks)], blocks, mark)
        return set(block_ids[len(blocks) :])

    def _store(
        self, cache: _Cache, store: Transfer, mark: torch.cuda.Event | None, copied: Future[None]
    ) -> None:
        """Copy blocks to the host, then write their files. In the writer's thread."""
        try:
            parts = [(cache.copies.to_host(ids, mark), paths) for ids, paths in _parts(store, _PART)]
        except Exception:
            logger.exception("KV blocks are not stored")
            return
        finally:
            copied.set_result(None)
        for blocks, paths in parts:
            for block, path in zip(blocks, paths, strict=True):
                try:
                    cache.blocks.write(str(path), block)
                except OSError as error:
                    self._warn(f"a KV block can't be stored: {error}")

    def _warn(self, message: str) -> None:
        """Once at the level of a warning."""
        log: Callable[[str], None] = logger.debug if self._has_warned else logger.warning
        self._has_warned = True
        log(message)


def _parts(transfer: Transfer, size: int) -> list[tuple[Sequence[int], Sequence[Place]]]:
    """A transfer's blocks and places in pieces of at most `size`."""
    return [
        (transfer.block_ids[start : start + size], transfer.places[start : start + size])
        for start in range(0, len(transfer.block_ids), size)
    ]
