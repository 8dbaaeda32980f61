"""What ranks that split layers exchange: sums over them, and the columns of a matrix that each has.

By one launch where the tensor is small and the GPUs reach each other's memory, else by the group. Both give
the same bits on all ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dodona.kernels.collective.flagged_sum import flagged_sum
from dodona.kernels.collective.flagged_sum import max_bytes as max_flagged_bytes
from dodona.kernels.collective.gather_columns import gather_columns, supports_gather_columns
from dodona.kernels.collective.messages import (
    Inboxes,
    has_words,
    inbox_size,
    make_inboxes,
    sum_reference,
)
from dodona.kernels.collective.one_shot_sum import one_shot_sum
from dodona.kernels.collective.two_shot_sum import two_shot_sum
from dodona.runners.device.graphs import capturing
from dodona.runners.distributed.joining import ProcessGroup
from dodona.runners.distributed.mesh import Group
from dodona.runners.distributed.symmetric_memory import SymmetricMemory, make_symmetric_memory

logger = logging.getLogger(__name__)


class Exchange(Protocol):
    """Between ranks. All of them must call it, with equal shapes."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, summed over the ranks in place."""

    def gather_columns(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out` [n, ranks * columns], filled with the columns `x` [n, columns] of each rank, side by side."""


@dataclass(frozen=True, slots=True)
class GroupExchange:
    """By the group's own calls."""

    group: Group

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        return self.group.all_reduce(x)

    def gather_columns(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        return torch.cat(list(self.group.all_gather(x)), dim=1, out=out)


LARGEST_ONE_SHOT = 2 << 20
"""Most bytes of the tensors that two ranks sum in one trip; as measured between two H200."""

LARGEST_ONE_SHOT_OF_MORE = 128 << 10
"""Most bytes of those that more ranks sum so."""

LARGEST_TWO_SHOT = 512 << 10
"""Most bytes of those that more ranks sum in one launch and two trips without flags."""

LARGEST_FLAGGED = 4 << 20
"""Most bytes of those that more ranks sum in one launch and two trips with flags."""

PATIENCE = 1 << 20
"""How often the check at the start looks for a message."""

_CHECKED = ((torch.bfloat16, 64), (torch.float32, 5_000), (torch.bfloat16, 4096), (torch.float16, 130))
"""Types and sizes of the tensors that the check sums in each way, beside the largest."""

_REPLAYS = 4

Sum = Callable[..., torch.Tensor]


def sums_by_launch(ranks: int) -> Sequence[tuple[Sum, int]]:
    """The launches that sum over so many ranks, and the most bytes that each is taken for, in this order."""
    if ranks == 2:
        return ((one_shot_sum, LARGEST_ONE_SHOT),)
    return (
        (one_shot_sum, LARGEST_ONE_SHOT_OF_MORE),
        (two_shot_sum, LARGEST_TWO_SHOT),
        (flagged_sum, min(LARGEST_FLAGGED, max_flagged_bytes(ranks))),
    )


@dataclass(frozen=True, slots=True, eq=False)
class LaunchExchange:
    """By launches, and by the group where that is quicker."""

    by_group: GroupExchange
    inboxes: Inboxes
    memory: SymmetricMemory
    """Of the inboxes."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        for add_up, most in sums_by_launch(self.inboxes.ranks):
            if has_words(x, most):
                return add_up(x, self.inboxes)
        return self.by_group.sum(x)

    def gather_columns(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        if supports_gather_columns(x):
            return gather_columns(x=x, out=out, inboxes=self.inboxes)
        return self.by_group.gather_columns(x, out)


def make_exchange(group: Group, device: torch.device) -> Exchange:
    """The exchange between the ranks of `group`. All must call it; all of them then have the same."""
    by_group = GroupExchange(group)
    if not isinstance(group, ProcessGroup) or device.type != "cuda":
        return by_group
    memory, why, is_right = None, "", False
    try:
        memory = make_symmetric_memory(group, inbox_size(group.size), device)
    except (RuntimeError, ImportError, AttributeError) as error:  # torch has no stable interface for it
        why = _first_line(error)
    if _on_all(group, memory is not None, device) and memory is not None:
        inboxes = make_inboxes(group.rank, memory.addresses, device)
        try:
            is_right = gives_right_results(group, inboxes, device)
            why = "a check of what it gives failed"
        except RuntimeError as error:
            why = _first_line(error)
        if _on_all(group, is_right, device):
            return LaunchExchange(by_group, inboxes, memory)
    logger.warning(
        "V2: ranks exchange small tensors by NCCL, not in one launch: %s", why or "see other ranks"
    )
    return by_group


def gives_right_results(group: Group, inboxes: Inboxes, device: torch.device) -> bool:
    """Whether a captured graph of sums in all ways, of several sizes up to the largest that each serves, and
    of a gathering, replayed with other numbers each time and no pause between, gives what it must. All ranks
    must call it, and launch the same whatever fails."""
    sums = [
        (add_up, torch.zeros(size, dtype=dtype, device=device))
        for add_up, most in sums_by_launch(group.size)
        for dtype, size in (*_CHECKED, (torch.bfloat16, most // 2), (torch.float32, most // 4))
    ]
    summed = [buffer for _, buffer in sums]
    columns = torch.zeros(3, 500, dtype=torch.bfloat16, device=device)
    gathered = columns.repeat(1, group.size)

    def launch() -> None:
        for add_up, buffer in sums:
            add_up(buffer, inboxes, patience=PATIENCE)
        gather_columns(x=columns, out=gathered, inboxes=inboxes, patience=PATIENCE)

    # Kernels are compiled here. A rank that takes longer finds the others' patience at an end, which is why
    # these results do not count; turns count on.
    launch()
    replay = _captured(launch, device)
    generator = torch.Generator(device).manual_seed(group.rank)
    buffers = [*summed, columns]
    given = [
        [torch.randn(x.shape, generator=generator, device=device).to(x.dtype) for x in buffers]
        for _ in range(_REPLAYS)
    ]
    expected = []
    for turn in given:
        of_ranks = [group.all_gather(own) for own in turn]
        expected += [*map(sum_reference, of_ranks[:-1]), torch.cat(list(of_ranks[-1]), dim=1)]
    found = []
    for turn in given:
        for buffer, own in zip(buffers, turn, strict=True):
            buffer.copy_(own)
        replay()
        found += [x.clone() for x in (*summed, gathered)]
    return all(map(torch.equal, found, expected))


def _captured(launch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Replays what `launch` launches."""
    torch.cuda.synchronize(device)
    with capturing() as graph:
        launch()
    return graph.replay


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _on_all(group: Group, holds: bool, device: torch.device) -> bool:
    return int(group.all_reduce(torch.tensor([int(holds)], device=device))) == group.size
