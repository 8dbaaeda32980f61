"""Sums over the ranks that split layers: by one launch where the tensor is small and the GPUs reach each
other's memory, else by the group's own all-reduce. Both give the same bits on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dodona.kernels.collective.one_shot_sum import (
    Inboxes,
    inbox_size,
    make_inboxes,
    one_shot_sum,
    one_shot_sum_reference,
    supports_one_shot_sum,
)
from dodona.runners.distributed.joining import ProcessGroup
from dodona.runners.distributed.mesh import Group
from dodona.runners.distributed.symmetric_memory import SymmetricMemory, make_symmetric_memory

logger = logging.getLogger(__name__)

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over the ranks, in place, and returns it."""

LARGEST_ONE_SHOT = 2 << 20
"""Most bytes that a rank sends in one launch, all receivers together; as measured between two H200."""

PATIENCE = 1 << 20
"""How often the check at the start looks for a message."""

_CHECKED = ((torch.bfloat16, 64), (torch.bfloat16, 4096), (torch.float32, 50_000))


@dataclass(frozen=True, slots=True, eq=False)
class RankSum:
    """A `Sum` that takes the quicker way."""

    group: Group
    inboxes: Inboxes
    memory: SymmetricMemory
    """Of the inboxes."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        sent = x.numel() * x.element_size() * (self.group.size - 1)
        if sent <= LARGEST_ONE_SHOT and supports_one_shot_sum(x):
            return one_shot_sum(x, self.inboxes)
        return self.group.all_reduce(x)


def make_rank_sum(group: Group, device: torch.device) -> Sum:
    """The sum over `group`. All ranks must call it; all of them then have the same way."""
    if not isinstance(group, ProcessGroup) or device.type != "cuda":
        return group.all_reduce
    memory, why = None, ""
    try:
        memory = make_symmetric_memory(group, inbox_size(group.size), device)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
    if _on_all(group, memory is not None, device) and memory is not None:
        inboxes = make_inboxes(group.rank, memory.addresses, device)
        why = "a check of its sums failed"
        if _on_all(group, _is_right(group, inboxes, device), device):
            return RankSum(group, inboxes, memory)
    logger.warning(
        "V2: ranks exchange small tensors by NCCL, not in one launch: %s", why or "see other ranks"
    )
    return group.all_reduce


def _is_right(group: Group, inboxes: Inboxes, device: torch.device) -> bool:
    """Whether sums of random numbers are as they must be. All ranks launch the same, whatever fails."""
    is_right = True
    generator = torch.Generator(device).manual_seed(group.rank)
    for dtype, size in _CHECKED:
        for _ in range(3):
            own = torch.randn(size, generator=generator, device=device).to(dtype)
            expected = one_shot_sum_reference(group.all_gather(own))
            found = one_shot_sum(own.clone(), inboxes, patience=PATIENCE)
            is_right = is_right and torch.equal(found, expected)
    return is_right


def _on_all(group: Group, holds: bool, device: torch.device) -> bool:
    return int(group.all_reduce(torch.tensor([int(holds)], device=device))) == group.size
