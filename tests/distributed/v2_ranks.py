"""V2 runners of several ranks in one process, driven in lockstep.

Triton's interpreter serves one thread at a time: a rank computes while it has the turn, and hands it on where
it waits for the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.distributed.mesh import Group, Mesh
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.limits import resolve_limits
from dodona.runners.v2.runner import V2Runner
from tests.support.thread_ranks import run_ranks

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
    settings = {"device": "cpu", "max_num_batched_tokens": 64, "max_num_seqs": 4, "max_model_len": 256}
    config, model = EngineConfig.from_flat(str(path), **{**settings, **flat}), ModelInfo.load(path)
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
