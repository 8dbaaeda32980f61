"""The scheduler's side of connectors that keep blocks by their hash: what is stored, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dodona.runners.interface import KVConnectorMetadata, KVConnectorOutput
from dodona.runners.kv_transfer.connector import KVConnectorScheduler, KVRequest

Place = int | str
"""Where a block is kept: a slot of the host's memory, or a file."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Blocks of one request to copy, between `block_ids` of the cache and `places`."""

    request_id: str
    """`KVRequest.kv_transfer_id`."""
    block_ids: Sequence[int]
    places: Sequence[Place]


@dataclass(frozen=True, slots=True)
class BlockMetadata(KVConnectorMetadata):
    """A step's copies. Loads begin before its stores."""

    loads: Sequence[Transfer] = ()
    stores: Sequence[Transfer] = ()


class BlockIndex(Protocol):
    """Which blocks are kept, and where."""

    def find(self, value: bytes) -> bool | None:
        """Whether the block with this hash can be loaded; None: not while another load reads it."""

    def reserve(self, value: bytes) -> Place | None:
        """Where to store a block, found from the next step on; None where it is kept, or can't be."""

    def begin_load(self, values: Sequence[bytes]) -> Sequence[Place]:
        """The places of blocks that were found; they stay until `end_load`."""

    def end_load(self, values: Sequence[bytes]) -> None:
        """The load of these blocks ended."""

    def fingerprint(self, weights: Path | None) -> str | None:
        """See `KVConnectorScheduler.fingerprint`."""

    def clear(self, fingerprint: str | None) -> None:
        """Weights changed: find none of the blocks stored before, but those of other engines with these."""


@dataclass(slots=True)
class _Tracked:
    """A request that has blocks."""

    request: KVRequest
    num_seen: int = 0
    """Its leading blocks that were given to the index."""
    is_stored: bool = False
    """Whether any block of it was given to the worker."""


class BlockTransferScheduler(KVConnectorScheduler):
    """Stores each block once it is full, unless the index has it, and loads what follows a cached prefix."""

    needs_block_hashes: ClassVar[bool] = True

    def __init__(self, index: BlockIndex, *, block_size: int) -> None:
        self.index = index
        self._block_size = block_size
        self._tracked: dict[str, _Tracked] = {}
        self._loading: dict[str, Sequence[bytes]] = {}
        """By request, the hashes of the blocks under way to it."""
        self._sending: set[str] = set()
        """Ended requests whose blocks are still read."""
        self._has_received = False
        """Whether loads were reported since the last step, which the next one may have to come after."""
        self._new_loads: list[Transfer] = []
        self._last_stores: list[tuple[_Tracked, list[bytes], list[int]]] = []
        """What ended requests left to store: hashes and blocks. They get places with the step that stores
        them, since no load may find them before."""

    def get_num_new_matched_tokens(
        self, request: KVRequest, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Kept blocks that follow the cached ones; later, while one is under way to another request, after
        which the cache has it."""
        first = num_computed_tokens // self._block_size
        most = (len(request.token_ids) - 1) // self._block_size
        count = 0
        for value in request.block_hashes[first:most]:
            found = self.index.find(value)
            if found is None:
                return None, False
            if not found:
                break
            count += 1
        return count * self._block_size, count > 0

    def update_state_after_alloc(
        self, request: KVRequest, block_ids: Sequence[int], num_external_tokens: int
    ) -> None:
        """Reserve the places to load from."""
        self._tracked[request.kv_transfer_id] = _Tracked(request)
        count = num_external_tokens // self._block_size
        if count:
            first = len(request.block_ids) - len(block_ids)
            hashes = request.block_hashes[first : first + count]
            self._loading[request.kv_transfer_id] = hashes
            places = self.index.begin_load(hashes)
            self._new_loads.append(Transfer(request.kv_transfer_id, block_ids[:count], places))

    def build_connector_meta(
        self, preempted_req_ids: Sequence[str], finished_req_ids: Sequence[str]
    ) -> KVConnectorMetadata | None:
        """The loads of requests that got blocks, and the stores of blocks that are full now."""
        for transfer_id in preempted_req_ids:
            self._tracked.pop(transfer_id, None)
        stores = [self._store(*last) for last in self._last_stores]
        for transfer_id, tracked in self._tracked.items():
            if tracked.request.num_remembered_blocks > tracked.num_seen and transfer_id not in self._loading:
                stores.append(self._store(tracked, *self._unseen(tracked)))
        loads, self._new_loads, self._last_stores = self._new_loads, [], []
        stores = [store for store in stores if store.places]
        finished = tuple(name for name in finished_req_ids if name in self._sending)
        has_received, self._has_received = self._has_received, False
        if not (loads or stores or self._loading or self._sending or preempted_req_ids or has_received):
            return None
        return BlockMetadata(tuple(preempted_req_ids), finished, loads=loads, stores=stores)

    def request_finished(self, request: KVRequest) -> tuple[bool, dict[str, Any] | None]:
        """Its blocks stay until those that are stored were read."""
        tracked = self._tracked.pop(request.kv_transfer_id)
        hashes, block_ids = self._unseen(tracked)
        if hashes:
            self._last_stores.append((tracked, hashes, block_ids))
        if not (hashes or tracked.is_stored):
            return False, None
        self._sending.add(request.kv_transfer_id)
        return True, None

    def update_connector_output(self, output: KVConnectorOutput) -> None:
        """Places that were read may be used again."""
        for transfer_id in output.finished_recving:
            self.index.end_load(self._loading.pop(transfer_id))
            self._has_received = True
        self._sending -= output.finished_sending

    def fingerprint(self, weights: Path | None) -> str | None:
        """The index's."""
        return self.index.fingerprint(weights)

    def reset_cache(self, fingerprint: str | None = None) -> None:
        """Find none of the blocks that are kept, but those of the same weights."""
        self.index.clear(fingerprint)
        self._last_stores.clear()

    def _unseen(self, tracked: _Tracked) -> tuple[list[bytes], list[int]]:
        """Hashes and ids of the full blocks that the index was not given yet."""
        request, first = tracked.request, tracked.num_seen
        tracked.num_seen = full = request.num_remembered_blocks
        return request.block_hashes[first:full], request.block_ids[first:full]

    def _store(self, tracked: _Tracked, hashes: list[bytes], block_ids: list[int]) -> Transfer:
        """Places for those of these blocks that the index takes."""
        reserved = [
            (block, self.index.reserve(value)) for value, block in zip(hashes, block_ids, strict=True)
        ]
        taken = [(block_id, place) for block_id, place in reserved if place is not None]
        tracked.is_stored |= bool(taken)
        return Transfer(
            tracked.request.kv_transfer_id, [block for block, _ in taken], [place for _, place in taken]
        )
