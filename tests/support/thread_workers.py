"""Workers as threads of the test's process: everything of an LLM with several ranks but the processes."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dodona.runners.distributed import joining, worker, workers
from dodona.runners.distributed.mesh import Mesh
from dodona.runners.distributed.messages import Answer, Start
from dodona.runners.v1.runner import V1Runner
from tests.support.thread_ranks import thread_meshes


class _WorkerThread:
    """In place of `process.WorkerProcess`."""

    pid = 0

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.connection, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._thread.start()

    def _serve(self, connection: Any) -> None:
        with connection:
            worker.serve(connection)

    def send(self, message: bytes) -> bool:
        self.connection.send_bytes(message)
        return True

    def receive(self) -> Answer | None:
        try:
            answer: Answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return answer

    def dump_stack(self) -> None:
        pass

    def is_stopped(self) -> bool:
        return False

    def log_tail(self) -> Sequence[str]:
        return ()

    def end(self, patience_s: float) -> int:
        self._thread.join(patience_s)
        self.connection.close()
        return 0


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `Workers` start threads until the test ends."""
    loading, joined = threading.Lock(), threading.Lock()
    read = V1Runner._read_model
    meshes: dict[str, list[Mesh]] = {}

    def read_alone(self: V1Runner, *args: Any) -> torch.nn.Module:
        with loading:  # transformers' loading changes global state for a while
            return read(self, *args)

    def join(start: Start) -> Mesh:
        with joined:
            if start.store not in meshes:
                meshes[start.store] = thread_meshes(start.sizes)[0]
        return meshes[start.store][start.rank]

    monkeypatch.setattr(workers, "WorkerProcess", _WorkerThread)
    monkeypatch.setattr(V1Runner, "_read_model", read_alone)
    monkeypatch.setattr(joining, "join", join)
