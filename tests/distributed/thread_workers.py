"""Workers as threads of one process: the engine, its messages and the ranks' runners are the real ones, and
nothing has to be started."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from dodona.runners.distributed import worker
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.distributed.messages import Failure, Message, Start, Stop
from dodona.runners.v1.runner import V1Runner
from tests.distributed.thread_runners import LoadsAlone
from tests.support.thread_ranks import thread_meshes

LIMIT = 60.0
"""Seconds for an answer."""


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with workers have threads in place of processes."""
    monkeypatch.setattr("dodona.runners.distributed.runner.Workers", ThreadWorkers)
    monkeypatch.setattr(worker, "_start", _start)


class _Place:
    """One rank's place; made when the first `Start` says how many ranks there are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.meshes: list[Mesh] = []
        self.abort: Any = None

    def of(self, start: Start) -> Mesh:
        with self.lock:
            if not self.meshes:
                self.meshes, self.abort = thread_meshes(start.sizes)
        return self.meshes[start.rank]


_places = threading.local()


def _start(start: Start) -> tuple[Any, bool]:
    torch.set_num_threads(1)
    given = (start.config, start.model, start.limits)
    if start.runner_class is not V1Runner:  # whose replicas are of one rank each
        return start.runner_class(*given), True
    mesh = ALONE if start.sizes.world == 1 else _places.place.of(start)
    return LoadsAlone(*given, mesh), mesh.samples


class _Connection:
    """A worker's end."""

    def __init__(self, rank: int, answers: SimpleQueue[tuple[int, bytes]]) -> None:
        self.messages: SimpleQueue[bytes] = SimpleQueue()
        self._rank, self._answers = rank, answers

    def recv_bytes(self) -> bytes:
        return self.messages.get()

    def send_bytes(self, data: bytes) -> None:
        self._answers.put((self._rank, data))


class ThreadWorkers:
    """See `runners.distributed.workers.Workers`; what fails on a rank is raised as it is."""

    store = "unused"

    def __init__(self, count: int, whose: str = "", launch: Any = None, given_up: Any = None) -> None:
        self._answers: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self._connections = [_Connection(rank, self._answers) for rank in range(count)]
        self._early: dict[int, deque[Any]] = {rank: deque() for rank in range(count)}
        self.devices = (None,) * count
        self._place = _Place()
        self._threads = [threading.Thread(target=self._serve, args=(c,)) for c in self._connections]
        for thread in self._threads:
            thread.start()

    def _serve(self, connection: _Connection) -> None:
        _places.place = self._place
        worker.serve(connection)

    def tell(self, message: Message, ranks: Sequence[int] | None = None) -> None:
        data = pickle.dumps(message)
        for rank in range(len(self._connections)) if ranks is None else ranks:
            self._connections[rank].messages.put(data)

    def answers(
        self, ranks: Sequence[int], what: str, limit_s: float | None, *, all_or_none: bool = False
    ) -> list[Any]:
        found = {rank: self._early[rank].popleft() for rank in ranks if self._early[rank]}
        while not set(ranks) <= found.keys():
            rank, data = self._answers.get(timeout=LIMIT)
            answer = pickle.loads(data)
            if isinstance(answer, Failure):
                print(answer.traceback)
                if self._place.abort is not None:
                    self._place.abort()
                raise answer.error
            if rank in ranks and rank not in found:
                found[rank] = answer.value
            else:
                self._early[rank].append(answer.value)
        return [found[rank] for rank in ranks]

    def stop(self) -> None:
        self.tell(Stop())
        for thread in self._threads:
            thread.join(LIMIT)
