"""A thousand faults of the shared storage, in a simulation that repeats exactly: no wrong token.

Scheduler, connector, worker and files are the real ones. The fake runner's cache lies in a tensor; it knows
what each slot must hold, and fails when it reads anything else. Jobs of the worker's threads run when a
random order says so. Engines have one rank, two that share the heads, or two that share the layers, and find
each other's blocks.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch

from dodona.runners.engine.request import Request
from dodona.runners.interface import KVConnectorOutput, KVPart, LayerKVSpec
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.rank_outputs import RankOutputs
from dodona.runners.kv_transfer.regions import Region, cover
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.index import StorageIndex
from dodona.runners.kv_transfer.storage.paths import is_stored
from dodona.runners.kv_transfer.storage.worker import SharedStorageWorker
from tests.engine.test_scheduler import assert_solo, make_request
from tests.support.fake_runner import _Slot, solo_run
from tests.support.sync_engine import SyncEngine

BLOCK_SIZE, NUM_BLOCKS = 4, 14
LAYERS = (LayerKVSpec(2, 1, 1),) * 2
PARTS = {
    "one": [KVPart.whole(LAYERS)],
    "heads": [KVPart(LAYERS, 0, 2, head_share=rank, head_shares=2) for rank in range(2)],
    "layers": [KVPart(LAYERS, rank, 1) for rank in range(2)],
    "copies": [KVPart(LAYERS, 0, 2, is_writer=rank == 1) for rank in range(2)],
}


class TensorSlots:
    """The fake runner's slots, by (group, block, offset), in a tensor that blocks can be copied from."""

    def __init__(self) -> None:
        self._tensor = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, 4, dtype=torch.int64)
        self._array = self._tensor.numpy()

    def __setitem__(self, key: tuple[int, int, int], slot: _Slot) -> None:
        context = slot.context - (1 << 64) if slot.context >= 1 << 63 else slot.context
        self._array[key[1], key[2]] = slot.token, slot.position, context, slot.weights

    def __getitem__(self, key: tuple[int, int, int]) -> _Slot:
        token, position, context, weights = self._array[key[1], key[2]].tolist()
        return _Slot(token, position, context & ((1 << 64) - 1), weights)

    def clear(self) -> None:
        self._array[:] = 0

    def layers(self, part: KVPart) -> list[LayerKV]:
        """A slot's four numbers are those of two layers with two heads."""
        heads = Region.of(part).heads(LAYERS[0])
        values = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, len(heads), 1, dtype=torch.int64)
        fields = self._tensor.unsqueeze(-1)
        return [
            LayerKV(fields[:, :, 2 * layer + heads.start : 2 * layer + heads.stop], values)
            for layer in range(part.first_layer, part.first_layer + part.num_layers)
        ]


class SlowExecutor(Executor):
    """Runs its jobs in their order, each after a random number of turns."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function, /, *args, **kwargs):
        future: Future[Any] = Future()
        self.jobs.append((future, lambda: function(*args, **kwargs)))
        return future

    def turn(self, *, to_the_end: bool = False) -> None:
        while self.jobs and (to_the_end or self.rng.random() < 0.5):
            future, job = self.jobs.pop(0)
            future.set_result(job())


class FaultyFiles(BlockFiles):
    """Files whose reads and writes fail in every way."""

    def __init__(self, root: Path, rng: random.Random, rate: float) -> None:
        super().__init__(root, max_bytes=None)
        self.rng, self.root, self.rate = rng, root, rate
        self.faults: Counter[str] = Counter()
        self.reads = 0

    def _read_bytes(self, path: str, limit: int) -> bytes:
        self.reads += 1
        if self.rng.random() >= self.rate:
            return super()._read_bytes(path, limit)
        kind = self.rng.choice(["missing", "short", "bit", "other", "fails", "empty"])
        self.faults[f"read {kind}"] += 1
        if kind == "missing":
            self.remove(path)
        if kind == "fails":
            raise OSError(errno.EIO, "Input/output error")
        data = super()._read_bytes(path, limit)
        if kind == "short":
            return data[: self.rng.randrange(len(data))]
        if kind == "empty":
            return b""
        if kind == "other":
            other = self.rng.choice(sorted(self.root.rglob("*.safetensors")))
            return other.read_bytes() if other != self.root / path else data[::-1]
        return _with_another_bit(data, self.rng)

    def _write_bytes(self, path: Path, data: bytes) -> None:
        if self.rng.random() >= self.rate / 3:
            super()._write_bytes(path, data)
            return
        kind = self.rng.choice(["full", "torn", "bit"])
        self.faults[f"write {kind}"] += 1
        if kind == "full":
            super()._write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        torn = data[: self.rng.randrange(len(data))]
        super()._write_bytes(path, torn if kind == "torn" else _with_another_bit(data, self.rng))


def _with_another_bit(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


class SimulatedWorker(SharedStorageWorker):
    """The worker, whose threads are two executors that run in turns."""

    def __init__(self, files: BlockFiles, rng: random.Random) -> None:
        self.executors = [SlowExecutor(rng), SlowExecutor(rng)]
        super().__init__(files, readers=self.executors[0], writer=self.executors[1])

    def handle_preemptions(self, metadata):
        if metadata.preempted_req_ids:  # the real threads would go on while it waits
            self.executors[1].turn(to_the_end=True)
        super().handle_preemptions(metadata)

    def get_finished(self, finished_req_ids):
        for executor in self.executors:
            executor.turn()
        return super().get_finished(finished_req_ids)


class Ranks(KVConnectorWorker):
    """The workers of all ranks, in turns, and what they report together; copies have a cache of their own."""

    def __init__(self, workers: Sequence[KVConnectorWorker]) -> None:
        self.workers = workers
        self.outputs = RankOutputs(len(workers))
        self.failed: set[int] = set()

    def handle_preemptions(self, metadata):
        for worker in self.workers:
            worker.handle_preemptions(metadata)

    def start_load_kv(self, metadata):
        for worker in self.workers:
            worker.start_load_kv(metadata)

    def wait_for_save(self, metadata):
        for worker in self.workers:
            worker.wait_for_save(metadata)

    def get_finished(self, finished_req_ids):
        outputs = []
        for worker in self.workers:
            sent, received = map(frozenset, worker.get_finished(finished_req_ids))
            failed = frozenset(worker.get_block_ids_with_load_errors())
            outputs.append(KVConnectorOutput(sent, received, failed))
        merged = self.outputs.add(outputs)
        if merged is None:
            return set(), set()
        self.failed = set(merged.invalid_block_ids)
        return set(merged.finished_sending), set(merged.finished_recving)

    def get_block_ids_with_load_errors(self):
        failed, self.failed = self.failed, set()
        return failed


def make_engine(
    files: BlockFiles, root: Path, rng: random.Random, in_flight: int, parts: Sequence[KVPart]
) -> SyncEngine:
    index = StorageIndex("model", lambda path: is_stored(root, path, LAYERS))
    engine = SyncEngine(
        num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=4, max_num_batched_tokens=24,
        max_steps_in_flight=in_flight,
        kv_connector=BlockTransferScheduler(index, block_size=BLOCK_SIZE),
    )  # fmt: skip
    slots: Any = TensorSlots()
    engine.runner.slots = slots
    workers = [SimulatedWorker(files, rng) for _ in parts]
    for worker, part in zip(workers, parts, strict=True):
        worker.register_kv_caches(slots.layers(part), part)
    engine.runner.kv_connector = Ranks(workers)
    return engine


def written(root: Path) -> list[set[str]]:
    """For each block, its files: whole, or parts by name."""
    found: dict[str, set[str]] = {}
    for file in root.rglob("*.safetensors"):
        is_part = file.parent.suffix == ".parts"
        found.setdefault((file.parent if is_part else file).stem, set()).add(
            file.name if is_part else "whole"
        )
    return list(found.values())


def check(request: Request) -> None:
    if request.finish_reason != "abort":
        assert_solo(request)
        return
    prompt, output = (
        request.token_ids[: request.num_prompt_tokens],
        request.token_ids[request.num_prompt_tokens :],
    )
    expected, _ = solo_run(
        prompt, request.params, vocab_size=97, max_model_len=1 << 30, eos=frozenset({0}), seed=request.seed
    )
    assert output == expected[: len(output)]


def test_a_thousand_faults_and_no_wrong_token(tmp_path: Path) -> None:
    rng = random.Random(7)
    files = FaultyFiles(tmp_path, rng, rate=0.3)
    stems = [[rng.randrange(97) for _ in range(28)] for _ in range(4)]
    number, loaded = 0, 0
    kinds: Counter[str] = Counter()
    for turn in range(400):
        # Engines come and go; what they share is the folder.
        if turn % 10 == 0:
            number_of_engine = turn // 10
            kind = list(PARTS)[number_of_engine % len(PARTS)]
            engine = make_engine(files, tmp_path, rng, 1 + number_of_engine % 3 % 2, PARTS[kind])
            kinds[kind] += 1
        requests = []
        for _ in range(6):
            prompt = rng.choice(stems)[: rng.randint(1, 28)] + [
                rng.randrange(97) for _ in range(rng.randint(1, 6))
            ]
            requests.append(make_request(str(number), prompt, seed=number, max_tokens=rng.randint(1, 9)))
            number += 1
        for request in requests:
            engine.scheduler.add(request)
            for _ in range(rng.randint(0, 2)):
                engine.step()
        if not requests[-1].finished and rng.random() < 0.5:
            engine.scheduler.abort(requests[-1])
        engine.run()
        engine.check_idle()
        for request in requests:
            check(request)
            loaded += request.num_cached_tokens or 0
        if sum(files.faults.values()) >= 1000:
            break
    assert sum(files.faults.values()) >= 1000, files.faults
    assert len(files.faults) == 9, files.faults
    assert files.reads > sum(files.faults.values())
    assert loaded
    assert kinds.keys() == PARTS.keys()
    assert {len(regions) for regions in written(tmp_path)} >= {1, 2, 3}


def test_the_least_files_that_cover_a_part():
    whole, first, second = Region(0, 2), Region(0, 2, 0, 2), Region(0, 2, 1, 2)
    assert cover(first, [second, whole]) == [whole]
    assert cover(whole, [first, Region(0, 1, 1, 2)]) is None
    assert set(cover(whole, [first, Region(0, 1), second]) or ()) == {first, second}
    assert cover(Region(1, 2, 3, 4), [first, second]) == [second]
    assert cover(Region(0, 2, 0, 3), [first, second]) == [first]
    assert cover(whole, []) is None
    for region in (whole, second, Region(3, 17, 5, 8)):
        assert Region.parse(region.name) == region
    for name in ("2-2.0of1", "0-1.1of1", "0-1", "-1-1.0of1", "0-1.0of1.x"):
        assert Region.parse(name) is None
