"""The worker's side of a KV connector over the fake runner's cache, with copies that take random times.

A store reads its blocks as late as it may, and a load leaves garbage until it ends: whoever frees, reuses or
reads a block too early makes the fake runner fail, which knows what each slot must hold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dodona.runners.interface import KVConnectorMetadata, KVPart
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockMetadata, Place, Transfer
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from tests.support.fake_runner import FakeRunner, _Slot

GARBAGE = _Slot(-1, -1, -1, -1)


@dataclass
class _UnderWay:
    transfer: Transfer
    steps_left: int


class FakeKVWorker(KVConnectorWorker):
    """Moves `BlockMetadata` within `most_steps` steps. `fault_rate` of the loads lose one block."""

    def __init__(self, runner: FakeRunner, *, seed: int = 0, most_steps: int = 3, fault_rate: float = 0.0):
        self.runner = runner
        self.rng = random.Random(seed)
        self.most_steps = most_steps
        self.fault_rate = fault_rate
        self.host: dict[Place, list[_Slot]] = {}
        self.stores: list[_UnderWay] = []
        self.loads: list[_UnderWay] = []
        self.ended: set[str] = set()
        self.failed: set[int] = set()
        self.num_loaded_blocks = 0
        self.num_faults = 0
        self.calls: list[str] = []

    def register_kv_caches(self, kv_caches: Sequence[LayerKV], part: KVPart) -> None:
        raise AssertionError("the fake runner's cache is known already")

    def handle_preemptions(self, metadata: KVConnectorMetadata) -> None:
        self.calls.append("handle_preemptions")
        for store in [s for s in self.stores if s.transfer.request_id in metadata.preempted_req_ids]:
            self._end_store(store)

    def start_load_kv(self, metadata: KVConnectorMetadata) -> None:
        assert isinstance(metadata, BlockMetadata)
        self.calls.append("start_load_kv")
        for load in metadata.loads:
            for block_id in load.block_ids:
                self._write(block_id, [GARBAGE] * self.runner.block_size)
            self.loads.append(_UnderWay(load, self.rng.randint(0, self.most_steps)))

    def wait_for_layer_load(self, layer: int) -> None:
        self.calls.append(f"wait_for_layer_load {layer}")

    def save_kv_layer(self, layer: int) -> None:
        self.calls.append(f"save_kv_layer {layer}")

    def wait_for_save(self, metadata: KVConnectorMetadata) -> None:
        assert isinstance(metadata, BlockMetadata)
        self.calls.append("wait_for_save")
        for store in metadata.stores:
            self.stores.append(_UnderWay(store, self.rng.randint(0, self.most_steps)))

    def get_finished(self, finished_req_ids: Sequence[str]) -> tuple[set[str], set[str]]:
        self.calls.append("get_finished")
        self.ended.update(finished_req_ids)
        for store in list(self.stores):
            store.steps_left -= 1
            if store.steps_left < 0 and store in self.stores:
                self._end_store(store)
        received = set()
        for load in list(self.loads):
            load.steps_left -= 1
            if load.steps_left < 0:
                self._end_load(load)
                received.add(load.transfer.request_id)
        sent = self.ended - {store.transfer.request_id for store in self.stores}
        self.ended -= sent
        return sent, received

    def get_block_ids_with_load_errors(self) -> set[int]:
        self.calls.append("get_block_ids_with_load_errors")
        failed, self.failed = self.failed, set()
        return failed

    def _end_store(self, store: _UnderWay) -> None:
        slots = set(store.transfer.places)
        for earlier in self.stores[: self.stores.index(store)]:
            if slots & set(earlier.transfer.places):  # on one stream, stores of a slot keep their order
                self._end_store(earlier)
        self.stores.remove(store)
        for block_id, slot in zip(store.transfer.block_ids, store.transfer.places, strict=True):
            size = self.runner.block_size
            self.host[slot] = [self.runner.slots[0, block_id, offset] for offset in range(size)]

    def _end_load(self, load: _UnderWay) -> None:
        slots = set(load.transfer.places)
        for store in [s for s in self.stores if slots & set(s.transfer.places)]:
            if store in self.stores:
                self._end_store(store)
        self.loads.remove(load)
        pairs = list(zip(load.transfer.block_ids, load.transfer.places, strict=True))
        lost = self.rng.randrange(len(pairs)) if self.rng.random() < self.fault_rate else None
        for index, (block_id, slot) in enumerate(pairs):
            if index == lost:
                self.failed.add(block_id)
                self.num_faults += 1
            else:
                self._write(block_id, self.host[slot])
                self.num_loaded_blocks += 1

    def _write(self, block_id: int, content: Sequence[_Slot]) -> None:
        for offset, slot in enumerate(content):
            self.runner.slots[0, block_id, offset] = slot
