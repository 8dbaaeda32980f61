"""A thousand faults of the shared storage, in a simulation that repeats exactly: no wrong token.

Scheduler, connector, worker and files are the real ones. The fake runner's cache lies in a tensor; it knows
what each slot must hold, and fails when it reads anything else. Jobs of the worker's threads run when a
random order says so.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch

from dodona.runners.engine.request import Request
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.index import StorageIndex
from dodona.runners.kv_transfer.storage.worker import SharedStorageWorker
from tests.engine.test_scheduler import assert_solo, make_request
from tests.support.fake_runner import _Slot, solo_run
from tests.support.sync_engine import SyncEngine

BLOCK_SIZE, NUM_BLOCKS = 4, 14


class TensorSlots:
    """The fake runner's slots, by (group, block, offset), in a tensor that blocks can be copied from."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, 1, 4, dtype=torch.int64)
        self._array = self.tensor.numpy()

    def __setitem__(self, key: tuple[int, int, int], slot: _Slot) -> None:
        context = slot.context - (1 << 64) if slot.context >= 1 << 63 else slot.context
        self._array[key[1], key[2], 0] = slot.token, slot.position, context, slot.weights

    def __getitem__(self, key: tuple[int, int, int]) -> _Slot:
        token, position, context, weights = self._array[key[1], key[2], 0].tolist()
        return _Slot(token, position, context & ((1 << 64) - 1), weights)

    def clear(self) -> None:
        self._array[:] = 0


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

    def _read_bytes(self, path: str) -> bytes:
        self.reads += 1
        if self.rng.random() >= self.rate:
            return super()._read_bytes(path)
        kind = self.rng.choice(["missing", "short", "bit", "other", "fails", "empty"])
        self.faults[f"read {kind}"] += 1
        if kind == "missing":
            self.remove(path)
        if kind == "fails":
            raise OSError(errno.EIO, "Input/output error")
        data = super()._read_bytes(path)
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


def make_engine(files: BlockFiles, root: Path, rng: random.Random, in_flight: int) -> SyncEngine:
    index = StorageIndex("model", lambda path: (root / path).is_file())
    engine = SyncEngine(
        num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=4, max_num_batched_tokens=24,
        max_steps_in_flight=in_flight,
        kv_connector=BlockTransferScheduler(index, block_size=BLOCK_SIZE),
    )  # fmt: skip
    slots: Any = TensorSlots()
    engine.runner.slots = slots
    worker = SimulatedWorker(files, rng)
    worker.register_kv_caches([LayerKV(slots.tensor, torch.zeros(NUM_BLOCKS, BLOCK_SIZE, 1, 1).long())])
    engine.runner.kv_connector = worker
    return engine


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
    for turn in range(400):
        # Engines come and go; what they share is the folder.
        if turn % 20 == 0:
            engine = make_engine(files, tmp_path, rng, in_flight=1 + turn // 20 % 2)
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
