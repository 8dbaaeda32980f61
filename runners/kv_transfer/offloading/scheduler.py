"""The scheduler's side of OffloadingConnector: which blocks are copied to the host, and which come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dodona.runners.interface import KVConnectorMetadata, KVConnectorOutput
from dodona.runners.kv_transfer.connector import KVConnectorScheduler, KVRequest
from dodona.runners.kv_transfer.offloading.metadata import OffloadingMetadata, Transfer
from dodona.runners.kv_transfer.offloading.slots import HostSlots


@dataclass(slots=True)
class _Tracked:
    """A request that has blocks."""

    request: KVRequest
    num_seen: int = 0
    """Its leading blocks that are on the host, or had no room there."""
    is_stored: bool = False
    """Whether any block of it was given to the worker."""


class OffloadingScheduler(KVConnectorScheduler):
    """A block goes to the host once it is full, unless it is there; the block used last stays longest."""

    needs_block_hashes: ClassVar[bool] = True

    def __init__(self, *, num_slots: int, block_size: int) -> None:
        self.slots = HostSlots(num_slots)
        self._block_size = block_size
        self._tracked: dict[str, _Tracked] = {}
        self._loading: dict[str, Sequence[bytes]] = {}
        """By request, the hashes of the blocks under way to it."""
        self._sending: set[str] = set()
        """Ended requests whose blocks are still read."""
        self._new_loads: list[Transfer] = []
        self._last_stores: list[tuple[_Tracked, list[bytes], list[int]]] = []
        """What ended requests left to store: hashes and blocks. They get slots with the step that stores
        them, since no load may find them before."""

    def get_num_new_matched_tokens(
        self, request: KVRequest, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Blocks on the host that follow the cached ones; later, while one is under way to another request,
        after which the cache has it."""
        first = num_computed_tokens // self._block_size
        most = (len(request.token_ids) - 1) // self._block_size
        count = 0
        for value in request.block_hashes[first:most]:
            if value not in self.slots:
                break
            if self.slots.is_loading(value):
                return None, False
            count += 1
        return count * self._block_size, count > 0

    def update_state_after_alloc(
        self, request: KVRequest, block_ids: Sequence[int], num_external_tokens: int
    ) -> None:
        """Reserve the slots to load from."""
        self._tracked[request.kv_transfer_id] = _Tracked(request)
        count = num_external_tokens // self._block_size
        if count:
            first = len(request.block_ids) - len(block_ids)
            hashes = request.block_hashes[first : first + count]
            self._loading[request.kv_transfer_id] = hashes
            slots = self.slots.begin_load(hashes)
            self._new_loads.append(Transfer(request.kv_transfer_id, block_ids[:count], slots))

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
        stores = [store for store in stores if store.slots]
        finished = tuple(name for name in finished_req_ids if name in self._sending)
        if not (loads or stores or self._loading or self._sending or preempted_req_ids):
            return None
        return OffloadingMetadata(tuple(preempted_req_ids), finished, loads, stores)

    def request_finished(self, request: KVRequest) -> tuple[bool, dict[str, Any] | None]:
        """Its blocks stay until those that go to the host are there."""
        tracked = self._tracked.pop(request.kv_transfer_id)
        hashes, block_ids = self._unseen(tracked)
        if hashes:
            self._last_stores.append((tracked, hashes, block_ids))
        if not (hashes or tracked.is_stored):
            return False, None
        self._sending.add(request.kv_transfer_id)
        return True, None

    def update_connector_output(self, output: KVConnectorOutput) -> None:
        """Slots that were read may be used again."""
        for transfer_id in output.finished_recving:
            self.slots.end_load(self._loading.pop(transfer_id))
        self._sending -= output.finished_sending

    def reset_cache(self) -> None:
        """Forget what is on the host."""
        self.slots.clear()
        self._last_stores.clear()

    def _unseen(self, tracked: _Tracked) -> tuple[list[bytes], list[int]]:
        """Hashes and ids of the full blocks that were not looked at yet."""
        request, first = tracked.request, tracked.num_seen
        tracked.num_seen = full = request.num_remembered_blocks
        return request.block_hashes[first:full], request.block_ids[first:full]

    def _store(self, tracked: _Tracked, hashes: list[bytes], block_ids: list[int]) -> Transfer:
        """Slots for those of these blocks that are not on the host."""
        slots: list[int] = []
        stored: list[int] = []
        for value, block_id in zip(hashes, block_ids, strict=True):
            if value in self.slots:
                self.slots.touch(value)
                continue
            slot = self.slots.allocate(value)
            if slot is not None:
                slots.append(slot)
                stored.append(block_id)
        tracked.is_stored |= bool(slots)
        return Transfer(tracked.request.kv_transfer_id, stored, slots)
