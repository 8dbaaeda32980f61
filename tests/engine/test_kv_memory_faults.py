"""A thousand faults of SharedMemoryConnector, in a simulation that repeats exactly: no wrong token.

Producers and consumers of one rank or two step in turns. Parts are damaged or never written, slots are taken
while they are read, producers vanish in the middle of anything, and waits end by a clock that runs by steps.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dodona.runners.interface import KVPart
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.shared_memory.arena import Arena, ArenaError, create_arena
from dodona.runners.kv_transfer.shared_memory.index import OtherArenas, OwnSlots, SharedMemoryIndex
from dodona.runners.kv_transfer.shared_memory.scheduler import SharedMemoryScheduler
from dodona.runners.kv_transfer.shared_memory.worker import ArenaBlocks, SharedMemoryWorker
from dodona.runners.kv_transfer.threaded_worker import BlockStore
from tests.engine.test_kv_faults import (
    BLOCK_SIZE,
    LAYERS,
    NUM_BLOCKS,
    PARTS,
    Ranks,
    SlowExecutor,
    TensorSlots,
    check,
)
from tests.engine.test_scheduler import make_request
from tests.support.sync_engine import SyncEngine


class Faults:
    """How often what went wrong."""

    def __init__(self, rng: random.Random, rate: float) -> None:
        self.rng, self.rate, self.seen = rng, rate, Counter[str]()

    def choose(self, *kinds: str) -> str | None:
        if self.rng.random() >= self.rate:
            return None
        kind = self.rng.choice(kinds)
        self.seen[kind] += 1
        return kind


class FaultyBlocks(ArenaBlocks):
    """Blocks of arenas that are damaged, late or lost."""

    faults: Faults

    def write(self, place, block):
        kind = self.faults.choose("write lost", "write fails", "write torn")
        if kind == "write lost":  # as by a rank that hangs: nobody says so
            return
        if kind == "write fails":
            raise OSError("a fault")
        super().write(place, block)
        if kind == "write torn":
            self._damage(place, self._layout.own)

    def read(self, place):
        kind = self.faults.choose("read fails", "damaged", "taken")
        if kind == "read fails":
            raise OSError("a fault")
        if kind == "damaged":
            self._damage(place, None)
        if kind == "taken":  # by the engine that owns the slot, for a block that does not come
            self._owner(place, lambda arena, slot: arena.assign(slot, b"x" * 16))
        block = super().read(place)
        self.faults.seen["good reads"] += 1
        return block

    def _damage(self, place: str, region: Region | None) -> None:
        def damage(arena: Arena, slot: int) -> None:
            part = arena.regions[region] if region else self.faults.rng.randrange(len(arena.regions))
            content = arena._part(slot, part)
            content[self.faults.rng.randrange(len(content))] ^= 1 << self.faults.rng.randrange(8)

        self._owner(place, damage)

    def _owner(self, place: str, change: Any) -> None:
        name, slot, _ = place.split("/")
        try:
            arena = self._arenas.get(name, writes=True)
        except (OSError, ArenaError):
            return
        change(arena, int(slot))


class SimulatedWorker(SharedMemoryWorker):
    """The worker, whose threads are two executors that run in turns, and whose clock counts its steps."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.faults, self.turns = faults, 0
        self.executors = [SlowExecutor(faults.rng), SlowExecutor(faults.rng)]
        super().__init__(
            folder, wait_seconds=20, readers=self.executors[0], writer=self.executors[1],
            clock=lambda: float(self.turns),
        )  # fmt: skip

    def make_store(self, layout) -> BlockStore:
        store = FaultyBlocks(self._arenas, layout)
        store.faults = self.faults
        return store

    def handle_preemptions(self, metadata):
        if metadata.preempted_req_ids:
            self.executors[1].turn(to_the_end=True)
        super().handle_preemptions(metadata)

    def get_finished(self, finished_req_ids):
        self.turns += 1
        for executor in self.executors:
            executor.turn()
        return super().get_finished(finished_req_ids)


def make_engine(
    folder: Path, faults: Faults, role: str, parts: Sequence[KVPart], *, num_slots: int, in_flight: int
) -> tuple[SyncEngine, SharedMemoryScheduler]:
    arena = None
    if role != "consumer":
        sizes = [(Region.of(p), Region.of(p).elements(LAYERS, BLOCK_SIZE) * 8) for p in parts if p.is_writer]
        arena = create_arena(folder, num_slots, sizes)
    index = SharedMemoryIndex(
        "model",
        own=None if arena is None else OwnSlots(arena),
        others=None
        if role == "producer"
        else OtherArenas(folder, None if arena is None else arena.path.name),
    )
    connector = SharedMemoryScheduler(index, arena, block_size=BLOCK_SIZE)
    engine = SyncEngine(
        num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=4, max_num_batched_tokens=24,
        max_steps_in_flight=in_flight, kv_connector=connector,
    )  # fmt: skip
    slots: Any = TensorSlots()
    engine.runner.slots = slots
    workers = [SimulatedWorker(folder, faults) for _ in parts]
    for worker, part in zip(workers, parts, strict=True):
        worker.register_kv_caches(slots.layers(part), part)
    engine.runner.kv_connector = Ranks(workers)
    return engine, connector


def test_a_thousand_faults_and_no_wrong_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(11)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=rng.getrandbits(128)))
    faults = Faults(rng, rate=0.15)
    stems = [[rng.randrange(97) for _ in range(28)] for _ in range(6)]
    kinds = list(PARTS)
    number, loaded, turn = 0, Counter[str](), 0
    engines: dict[str, tuple[SyncEngine, SharedMemoryScheduler]] = {}
    while sum(faults.seen.values()) - faults.seen["good reads"] < 1000:
        for place, role in enumerate(("producer", "consumer", "both")):
            if (turn + 5 * place) % 15 == 0:
                if role in engines:  # with all that it announced; its requests are lost
                    engines.pop(role)[1].shutdown()
                    faults.seen["engine ends"] += 1
                engines[role] = make_engine(
                    tmp_path, faults, role, PARTS[kinds[(turn // 15 + place) % len(kinds)]],
                    num_slots=rng.choice([6, 40]), in_flight=1 + turn // 15 % 2,
                )  # fmt: skip
        requests = {role: [] for role in engines}
        for _ in range(6):
            prompt = rng.choice(stems)[: rng.randint(1, 28)]
            prompt += [rng.randrange(97) for _ in range(rng.randint(1, 6))]
            for role in sorted(engines, key=lambda _: rng.random()):
                request = make_request(str(number), prompt, seed=number, max_tokens=rng.randint(1, 6))
                number += 1
                requests[role].append(request)
                engines[role][0].scheduler.add(request)
                for _ in range(rng.randint(0, 3)):
                    engines[rng.choice(list(engines))][0].step()
        for role, those in requests.items():
            if not those[-1].finished and rng.random() < 0.4:
                engines[role][0].scheduler.abort(those[-1])
        for role in sorted(engines, key=lambda _: rng.random()):
            engines[role][0].run()
            engines[role][0].check_idle()
            for request in requests[role]:
                check(request)
                loaded[role] += request.num_cached_tokens or 0
        turn += 1
    expected = {
        "write lost", "write fails", "write torn", "read fails", "damaged", "taken", "engine ends",
        "good reads",
    }  # fmt: skip
    assert faults.seen.keys() == expected, faults.seen
    assert faults.seen["good reads"] > 300
    assert loaded["consumer"]
    assert loaded["both"]
