"""Device memory that the GPUs of one machine read and write in each other, by torch's symmetric memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dodona.runners.distributed.joining import ProcessGroup


@dataclass(frozen=True, slots=True, eq=False)
class SymmetricMemory:
    """Equally large memory of every rank, for as long as this value is kept."""

    addresses: Sequence[int]
    """By rank, where its memory begins, as this rank's device addresses it."""
    kept: tuple[torch.Tensor, Any]
    """This rank's own, and torch's handle of all."""


def make_symmetric_memory(group: ProcessGroup, size: int, device: torch.device) -> SymmetricMemory:
    """`size` bytes of each rank's `device`, zero at first. All ranks of `group` must call it.

    Raises RuntimeError where the devices can't be shared so.
    """
    from torch.distributed import _symmetric_memory as symmetric_memory

    own = symmetric_memory.empty(size, dtype=torch.uint8, device=device)
    own.zero_()
    torch.cuda.synchronize(device)
    handle = symmetric_memory.rendezvous(own, group.handle)
    return SymmetricMemory(tuple(handle.buffer_ptrs), (own, handle))
