"""Ranks as threads of one process: what they compute is that of processes, at no cost of starting them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from dodona.runners.distributed.mesh import Alone, Group, Mesh
from dodona.runners.distributed.ranks import RankSizes

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which a rank waits for another."""


class _Shared:
    """What the members of a group share."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.slots: list[Any] = [None] * size
        self.queues = {(a, b): SimpleQueue[torch.Tensor]() for a in range(size) for b in range(size)}


class ThreadGroup:
    """A group of threads; see `mesh.Group`."""

    def __init__(self, shared: _Shared, rank: int) -> None:
        self._shared = shared
        self.rank = rank
        self.size = len(shared.slots)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        total = torch.stack(list(self.all_gather(tensor))).sum(0)
        return tensor.copy_(total)

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        shared = self._shared
        shared.slots[self.rank] = tensor.clone()
        shared.barrier.wait()
        found = list(shared.slots)
        shared.barrier.wait()
        assert {t.shape for t in found} == {tensor.shape}
        return found

    def send(self, tensor: torch.Tensor, to: int) -> None:
        self._shared.queues[self.rank, to].put(tensor.clone())

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        sent = self._shared.queues[source, self.rank].get(timeout=PATIENCE)
        assert (sent.shape, sent.dtype) == (tensor.shape, tensor.dtype)
        return tensor.copy_(sent)


def thread_meshes(sizes: RankSizes) -> tuple[list[Mesh], Callable[[], None]]:
    """Each rank's place, for a thread of its own; and a function that ends all waiting for each other."""
    shared: list[_Shared] = []

    def group(groups: Sequence[tuple[int, ...]]) -> dict[int, Group]:
        found: dict[int, Group] = {}
        for ranks in groups:
            if len(ranks) > 1:
                shared.append(_Shared(len(ranks)))
            for number, rank in enumerate(ranks):
                found[rank] = Alone() if len(ranks) == 1 else ThreadGroup(shared[-1], number)
        return found

    tensor, context = group(sizes.tensor_groups()), group(sizes.context_groups())
    pipeline = group(sizes.pipeline_groups())

    def abort() -> None:
        for each in shared:
            each.barrier.abort()

    places = range(sizes.world)
    return [Mesh(rank, sizes.world, tensor[rank], context[rank], pipeline[rank]) for rank in places], abort


def run_ranks(sizes: RankSizes, function: Callable[[Mesh], T]) -> list[T]:
    """`function(mesh)` in one thread per rank; the results in the ranks' order. Raises the first error."""
    meshes, abort = thread_meshes(sizes)

    def work(rank: int) -> T:
        torch.set_num_threads(1)
        try:
            return function(meshes[rank])
        except BaseException:
            abort()
            raise

    with ThreadPoolExecutor(sizes.world) as pool:
        futures = [pool.submit(work, rank) for rank in range(sizes.world)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
