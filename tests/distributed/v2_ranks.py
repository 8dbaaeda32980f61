"""V2 runners of several ranks in one process, driven in lockstep.

Triton's interpreter serves one thread at a time: a rank computes while it has the turn, and hands it on where
it waits for the others. On a GPU all ranks share it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.distributed import worker
from dodona.runners.distributed.mesh import Group, Mesh
from dodona.runners.distributed.messages import Start
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.limits import resolve_limits
from dodona.runners.v2.runner import V2Runner
from tests.distributed import thread_workers
from tests.support.thread_ranks import run_ranks
from tests.v2.drive import DEVICE

T = TypeVar("T")


class InTurn:
    """A group whose members compute one at a time."""

    def __init__(self, group: Group, turn: threading.Lock) -> None:
        self._group, self._turn = group, turn
        self.rank, self.size = group.rank, group.size

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._waiting(lambda: self._group.all_reduce(tensor))

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        return self._waiting(lambda: self._group.all_gather(tensor))

    def _waiting(self, exchange: Callable[[], T]) -> T:
        self._turn.release()
        try:
            return exchange()
        finally:
            self._turn.acquire()


def on_ranks(path: Path, function: Callable[[V2Runner], T], *, num_blocks: int = 40, **flat: Any) -> list[T]:
    """`function(runner)` of each rank's runner, which is loaded and has a KV cache; as many ranks as the
    configuration says."""
    settings = {
        "device": DEVICE,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
        "max_model_len": 256,
        "enforce_eager": True,
    }
    config, model = EngineConfig.from_flat(str(path), **{**settings, **flat}), ModelInfo.load(path)
    if DEVICE == "cuda" and torch.cuda.device_count() < config.parallel_config.world_size_across_dp:
        pytest.skip("V2 refuses more ranks than there are GPUs")
    turn = threading.Lock()

    def work(mesh: Mesh) -> T:
        with turn:
            in_turn = replace(mesh, tensor=InTurn(mesh.tensor, turn))
            runner = V2Runner(config, model, resolve_limits(config, model), in_turn)
            runner.load_model()
            runner.initialize_kv_cache(num_blocks)
            runner.capture_graphs()
            return function(runner)

    return run_ranks(RankSizes.of(config.parallel_config), work)


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with workers have threads in place of processes, and each rank V2."""
    thread_workers.use_threads(monkeypatch)
    turn = threading.Lock()
    serve, receive = thread_workers.ThreadWorkers._serve, thread_workers._Connection.recv_bytes

    def start(message: Start) -> tuple[V2Runner, bool]:
        torch.set_num_threads(1)
        mesh = thread_workers._places.place.of(message)
        in_turn = replace(mesh, tensor=InTurn(mesh.tensor, turn))
        return V2Runner(message.config, message.model, message.limits, in_turn), mesh.samples

    def serve_in_turn(self: Any, connection: Any) -> None:
        with turn:
            serve(self, connection)

    def receive_in_turn(self: Any) -> bytes:
        turn.release()
        try:
            return receive(self)
        finally:
            turn.acquire()

    monkeypatch.setattr(worker, "_start", start)
    monkeypatch.setattr(thread_workers.ThreadWorkers, "_serve", serve_in_turn)
    monkeypatch.setattr(thread_workers._Connection, "recv_bytes", receive_in_turn)
