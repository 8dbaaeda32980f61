"""The worker's side of connectors that hand blocks to a store: threads read and write beside the steps."""

from __future__ import annotations

import itertools
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dodona.runners.interface import KVConnectorMetadata, KVPart
from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockMetadata, Place, Transfer
from dodona.runners.kv_transfer.cache_copies import CacheCopies
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.part_layout import PartLayout

logger = logging.getLogger("dodona.kv_transfer")

READERS = 4
"""Threads that read blocks, and most parts that a load is split into."""

PENDING_BYTES = 1 << 30
"""Most bytes of blocks that wait to be written. More are not stored: a slow disk must not keep blocks of the
cache from others."""

_PART = 16
"""Most blocks that are copied at a time."""


class DamagedBlockError(Exception):
    """What is stored is not the block that it should be."""


class BlockStore(Protocol):
    """Where a rank's parts of blocks are kept. Several threads call it."""

    def is_settled(self, place: Place) -> bool:
        """Whether waiting is of no use: `read` then gives the block or its error."""

    def read(self, place: Place) -> torch.Tensor:
        """This rank's part of a block, [elements]. Raises OSError and DamagedBlockError."""

    def write(self, place: Place, block: torch.Tensor) -> None:
        """Keep this rank's part [elements] of a block. Raises OSError."""

    def give_up(self, place: Place) -> None:
        """A block that was to be written will not be."""


@dataclass(frozen=True, slots=True)
class _Store:
    num_blocks: int
    copied: Future[None]
    """Done when the blocks were read."""


_BlockPart = tuple[Sequence[int], Sequence[Place]]


@dataclass(slots=True)
class _Load:
    """A request's load."""

    waiting: list[_BlockPart]
    """What was not begun: blocks and places."""
    mark: torch.cuda.Event | None
    deadline: float
    begun: list[Future[set[int]]] = field(default_factory=list)
    """Each returns the blocks that failed."""


@dataclass(frozen=True, slots=True)
class _Cache:
    """What is known once there is a cache."""

    copies: CacheCopies
    blocks: BlockStore
    stores: bool
    """Whether this rank is the one that stores its part."""


class ThreadedWorker(KVConnectorWorker):
    """Reads and writes this rank's part of blocks.

    A block that can't be read makes a load error, and is computed again; one that can't be written is lost.
    Nothing of it ends the engine.
    """

    def __init__(
        self,
        *,
        readers: Executor | None = None,
        writer: Executor | None = None,
        wait_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """readers, writer: run the jobs; None makes threads. Jobs of the writer run one at a time.
        wait_seconds: how long a load waits for blocks that are not settled."""
        self._readers = readers or ThreadPoolExecutor(READERS, thread_name_prefix="dodona-kv-read")
        self._writer = writer or ThreadPoolExecutor(1, thread_name_prefix="dodona-kv-write")
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._cache: _Cache | None = None
        self._loads: dict[str, _Load] = {}
        """By request."""
        self._stores: dict[str, list[_Store]] = {}
        """By request, those that may be under way."""
        self._ended: set[str] = set()
        """Requests that ended and were not reported as sent."""
        self._failed: set[int] = set()
        self._has_warned = False

    @abstractmethod
    def make_store(self, layout: PartLayout) -> BlockStore:
        """The store for parts of this layout."""

    def register_kv_caches(self, kv_caches: Sequence[LayerKV], part: KVPart) -> None:
        """Take the cache."""
        layout = BlockLayout(kv_caches)
        parts = PartLayout(part, block_size=kv_caches[0].keys.shape[1], dtype=layout.dtype)
        self._cache = _Cache(CacheCopies(layout), self.make_store(parts), part.is_writer)

    def release_kv_caches(self) -> None:
        """Wait for what reads or writes the cache, and let go of it."""
        wait([store.copied for store in itertools.chain(*self._stores.values())])
        for load in self._loads.values():
            self._begin(load, all_of_it=True)
            wait(load.begun)
        self._cache = None

    def handle_preemptions(self, metadata: KVConnectorMetadata) -> None:
        """Wait until the blocks of preempted requests were read."""
        for name in metadata.preempted_req_ids:
            wait([store.copied for store in self._stores.pop(name, ())])

    def start_load_kv(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's loads."""
        assert isinstance(metadata, BlockMetadata)
        for transfer in metadata.loads:
            size = max(1, min(_PART, -(-len(transfer.block_ids) // READERS)))
            mark = self._require_cache().copies.mark()
            load = _Load(_parts(transfer, size), mark, self._clock() + self._wait_seconds)
            self._loads[transfer.request_id] = load
            self._begin(load)

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
                for place in store.places:
                    cache.blocks.give_up(place)
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
        received = set()
        for name, load in list(self._loads.items()):
            self._begin(load, all_of_it=self._clock() > load.deadline)
            if not load.waiting and all(part.done() for part in load.begun):
                del self._loads[name]
                received.add(name)
                self._failed.update(*(part.result() for part in load.begun))
        return sent, received

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that could not be read."""
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

    def _begin(self, load: _Load, *, all_of_it: bool = False) -> None:
        """Read the parts of a load that are settled, or all that are left."""
        cache, waiting = self._require_cache(), []
        for ids, places in load.waiting:
            if all_of_it or all(map(cache.blocks.is_settled, places)):
                load.begun.append(self._readers.submit(self._load, cache, ids, places, load.mark))
            else:
                waiting.append((ids, places))
        load.waiting = waiting

    def _load(
        self,
        cache: _Cache,
        block_ids: Sequence[int],
        places: Sequence[Place],
        mark: torch.cuda.Event | None,
    ) -> set[int]:
        """Copy blocks into the cache, up to the first that fails; that one and those after it are returned.
        In a reader's thread."""
        blocks: list[torch.Tensor] = []
        for place in places:
            try:
                block = cache.blocks.read(place)
            except (OSError, DamagedBlockError) as error:
                logger.info("KV block %s is computed again: %s", place, error)
                break
            blocks.append(block)
        if blocks:
            cache.copies.to_cache(block_ids[: len(blocks)], blocks, mark)
        return set(block_ids[len(blocks) :])

    def _store(
        self, cache: _Cache, store: Transfer, mark: torch.cuda.Event | None, copied: Future[None]
    ) -> None:
        """Copy blocks to the host, then write them. In the writer's thread."""
        try:
            parts = [(cache.copies.to_host(ids, mark), places) for ids, places in _parts(store, _PART)]
        except Exception:
            logger.exception("KV blocks are not stored")
            for place in store.places:
                cache.blocks.give_up(place)
            return
        finally:
            copied.set_result(None)
        for blocks, places in parts:
            for block, place in zip(blocks, places, strict=True):
                try:
                    cache.blocks.write(place, block)
                except OSError as error:
                    cache.blocks.give_up(place)
                    self._warn(f"a KV block can't be stored: {error}")

    def _warn(self, message: str) -> None:
        """Once at the level of a warning."""
        log: Callable[[str], None] = logger.debug if self._has_warned else logger.warning
        self._has_warned = True
        log(message)


def _parts(transfer: Transfer, size: int) -> list[_BlockPart]:
    """A transfer's blocks and places in pieces of at most `size`."""
    return [
        (transfer.block_ids[start : start + size], transfer.places[start : start + size])
        for start in range(0, len(transfer.block_ids), size)
    ]
