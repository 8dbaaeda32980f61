"""Sums over the ranks that split layers: by one launch where the tensor is small and the GPUs reach each
other's memory, else by the group's own all-reduce. Both give the same bits on all ranks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dodona.kernels.collective.messages import Inboxes, inbox_size, make_inboxes, sum_reference
from dodona.kernels.collective.one_shot_sum import one_shot_sum, supports_one_shot_sum
from dodona.kernels.collective.two_shot_sum import supports_two_shot_sum, two_shot_sum
from dodona.runners.distributed.joining import ProcessGroup
from dodona.runners.distributed.mesh import Group
from dodona.runners.distributed.symmetric_memory import SymmetricMemory, make_symmetric_memory

logger = logging.getLogger(__name__)

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over the ranks, in place, and returns it."""

LARGEST_ONE_SHOT = 2 << 20
"""Most bytes of the tensors that two ranks sum in one trip; as measured between two H200."""

LARGEST_ONE_SHOT_OF_MORE = 256 << 10
"""Most bytes of those that more ranks sum so."""

LARGEST_TWO_SHOT = 4 << 20
"""Most bytes of those that more ranks sum in one launch and two trips."""

PATIENCE = 1 << 20
"""How often the check at the start looks for a message."""

_CHECKED = ((torch.bfloat16, 64), (torch.float32, 50_000), (torch.bfloat16, 4096), (torch.float16, 130))
"""Types and sizes of the tensors that the check sums, beside the largest."""

_REPLAYS = 4


@dataclass(frozen=True, slots=True, eq=False)
class RankSum:
    """A `Sum` that takes the quicker way."""

    group: Group
    inboxes: Inboxes
    memory: SymmetricMemory
    """Of the inboxes."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        size, ranks = x.numel() * x.element_size(), self.group.size
        largest = LARGEST_ONE_SHOT if ranks == 2 else LARGEST_ONE_SHOT_OF_MORE
        if size <= largest and supports_one_shot_sum(x):
            return one_shot_sum(x, self.inboxes)
        if ranks > 2 and size <= LARGEST_TWO_SHOT and supports_two_shot_sum(x, ranks):
            return two_shot_sum(x, self.inboxes)
        return self.group.all_reduce(x)


def make_rank_sum(group: Group, device: torch.device) -> Sum:
    """The sum over `group`. All ranks must call it; all of them then have the same way."""
    if not isinstance(group, ProcessGroup) or device.type != "cuda":
        return group.all_reduce
    memory, why, is_right = None, "", False
    try:
        memory = make_symmetric_memory(group, inbox_size(group.size), device)
    except (RuntimeError, ImportError, AttributeError) as error:  # torch has no stable interface for it
        why = _first_line(error)
    if _on_all(group, memory is not None, device) and memory is not None:
        inboxes = make_inboxes(group.rank, memory.addresses, device)
        try:
            is_right = gives_right_sums(group, inboxes, device)
            why = "a check of its sums failed"
        except RuntimeError as error:
            why = _first_line(error)
        if _on_all(group, is_right, device):
            return RankSum(group, inboxes, memory)
    logger.warning(
        "V2: ranks exchange small tensors by NCCL, not in one launch: %s", why or "see other ranks"
    )
    return group.all_reduce


def gives_right_sums(group: Group, inboxes: Inboxes, device: torch.device) -> bool:
    """Whether a captured graph of sums of several sizes, replayed with other numbers each time and no pause
    between, gives what it must. All ranks must call it, and launch the same whatever fails."""
    sizes = 2 * (*_CHECKED, (torch.float32, LARGEST_ONE_SHOT // 4))  # an odd number, twice: each size by both
    buffers = [torch.zeros(size, dtype=dtype, device=device) for dtype, size in sizes]

    def add_up() -> None:
        for number, buffer in enumerate(buffers):
            add = two_shot_sum if group.size > 2 and number % 2 else one_shot_sum
            add(buffer, inboxes, patience=PATIENCE)

    # Kernels are compiled here. A rank that takes longer finds the others' patience at an end, which is why
    # these sums do not count; turns count on.
    add_up()
    replay = _captured(add_up, device)
    generator = torch.Generator(device).manual_seed(group.rank)
    given = [
        [torch.randn(size, generator=generator, device=device).to(dtype) for dtype, size in sizes]
        for _ in range(_REPLAYS)
    ]
    expected = [[sum_reference(group.all_gather(own)) for own in turn] for turn in given]
    found = []
    for turn in given:
        for buffer, own in zip(buffers, turn, strict=True):
            buffer.copy_(own)
        replay()
        found.append([buffer.clone() for buffer in buffers])
    return all(map(torch.equal, itertools.chain(*found), itertools.chain(*expected)))


def _captured(launch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Replays what `launch` launches."""
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        launch()
    return graph.replay


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _on_all(group: Group, holds: bool, device: torch.device) -> bool:
    return int(group.all_reduce(torch.tensor([int(holds)], device=device))) == group.size
