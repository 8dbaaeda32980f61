"""Sums over ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.collective.flagged_sum import flagged_sum
from dodona.kernels.collective.gather_columns import gather_columns
from dodona.kernels.collective.messages import make_inboxes
from dodona.kernels.collective.one_shot_sum import one_shot_sum
from dodona.kernels.collective.two_shot_sum import two_shot_sum


def add_up(function: Callable[..., torch.Tensor], dtype: torch.dtype, ranks: int, patience: int) -> None:
    inboxes = make_inboxes(ranks - 1, [0] * ranks, torch.device("cpu"))
    function(torch.zeros(2, 512, dtype=dtype), inboxes, patience=patience)


def gather(dtype: torch.dtype, ranks: int) -> None:
    inboxes = make_inboxes(ranks - 1, [0] * ranks, torch.device("cpu"))
    x = torch.zeros(3, 500, dtype=dtype)
    gather_columns(x=x, out=x.repeat(1, ranks), inboxes=inboxes)


CASES: dict[str, Callable[[], None]] = {
    f"{function.__name__}, {dtype}, {ranks} ranks, patience {patience}": partial(
        add_up, function, dtype, ranks, patience
    )
    for function, dtype, ranks, patience in (
        (one_shot_sum, torch.bfloat16, 2, 0),
        (one_shot_sum, torch.bfloat16, 4, 1000),
        (one_shot_sum, torch.float32, 2, 0),
        (two_shot_sum, torch.bfloat16, 4, 0),
        (two_shot_sum, torch.float32, 4, 1000),
        (flagged_sum, torch.bfloat16, 4, 0),
        (flagged_sum, torch.float32, 2, 1000),
    )
} | {
    f"gather_columns, {dtype}, {ranks} ranks": partial(gather, dtype, ranks)
    for dtype, ranks in ((torch.bfloat16, 2), (torch.float32, 4))
}
