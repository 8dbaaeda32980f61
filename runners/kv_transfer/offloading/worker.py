"""The worker's side of OffloadingConnector: it copies blocks to the host's memory and back."""

from __future__ import annotations

from collections.abc import Sequence

from dodona.runners.interface import KVConnectorMetadata, KVPart
from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockMetadata, Place
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.offloading.host_memory import Copy, HostMemory, allocate_host_memory


class OffloadingWorker(KVConnectorWorker):
    """Copies run beside the steps; none of them can fail without ending the engine."""

    def __init__(self, *, cpu_bytes: int) -> None:
        self._cpu_bytes = cpu_bytes
        self._memory: HostMemory | None = None
        self._loads: dict[str, Copy] = {}
        """By request, those that are not reported."""
        self._received: set[str] = set()
        """Requests to report."""
        self._leading: list[Copy] = []
        """Loads that were reported before they ended: the next step comes after them on the device."""
        self._stores: dict[str, list[Copy]] = {}
        """By request, those that may be under way."""
        self._ended: set[str] = set()
        """Requests that ended and were not reported as sent."""

    def register_kv_caches(self, kv_caches: Sequence[LayerKV], part: KVPart) -> None:
        """Take the cache; the host's memory is allocated for the first one, and its content stays."""
        layout = BlockLayout(kv_caches)
        if self._memory is None:
            self._memory = allocate_host_memory(layout, self._cpu_bytes // layout.bytes_per_block)
        else:
            self._memory.rebind(layout)

    def release_kv_caches(self) -> None:
        """Wait for copies; the host's memory and its content stay."""
        if self._memory is not None:
            self._memory.rebind(None)

    def handle_preemptions(self, metadata: KVConnectorMetadata) -> None:
        """What the step writes comes after the stores of preempted requests; what it reads, after loads."""
        copies = [copy for name in metadata.preempted_req_ids for copy in self._stores.pop(name, ())]
        copies += self._leading
        self._leading = []
        if copies:
            self._host.order_before_steps(copies)

    def start_load_kv(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's loads.

        Where no request runs, nobody is delayed by steps that wait for loads on the device. So loads are
        reported at once, and the host launches what reads them while they are under way.
        """
        assert isinstance(metadata, BlockMetadata)
        for load in metadata.loads:
            self._loads[load.request_id] = self._host.load(load.block_ids, _slots(load.places))
        if metadata.is_idle:
            self._leading += self._loads.values()
            self._received.update(self._loads)
            self._loads.clear()

    def wait_for_save(self, metadata: KVConnectorMetadata) -> None:
        """Begin the step's stores, all in one; their blocks stay until they are reported."""
        assert isinstance(metadata, BlockMetadata)
        # A slot that a later store of the step takes over holds what that one stores.
        blocks = {
            slot: block_id
            for store in metadata.stores
            for block_id, slot in zip(store.block_ids, _slots(store.places), strict=True)
        }
        if blocks:
            copy = self._host.store(list(blocks.values()), list(blocks))
            for store in metadata.stores:
                under_way = [c for c in self._stores.get(store.request_id, ()) if not c.query()]
                self._stores[store.request_id] = [*under_way, copy]

    def get_finished(self, finished_req_ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """See `KVConnectorWorker`."""
        self._ended.update(finished_req_ids)
        sent = {name for name in self._ended if all(copy.query() for copy in self._stores.get(name, ()))}
        self._ended -= sent
        for name in sent:
            self._stores.pop(name, None)
        ended = {name for name, copy in self._loads.items() if copy.query()}
        for name in ended:
            del self._loads[name]
        received, self._received = ended | self._received, set()
        return sent, received

    def shutdown(self) -> None:
        """Wait for copies and give the host's memory back. Idempotent."""
        if self._memory is not None:
            self._memory.close()
        self._memory = None
        self._loads.clear()
        self._received.clear()
        self._leading.clear()
        self._stores.clear()
        self._ended.clear()

    @property
    def _host(self) -> HostMemory:
        if self._memory is None:
            raise RuntimeError("there is no KV cache: call register_kv_caches first")
        return self._memory


def _slots(places: Sequence[Place]) -> list[int]:
    return [int(place) for place in places]
