"""Sums over ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.collective.one_shot_sum import make_inboxes, one_shot_sum


def one_shot(dtype: torch.dtype, ranks: int, patience: int) -> None:
    inboxes = make_inboxes(ranks - 1, [0] * ranks, torch.device("cpu"))
    one_shot_sum(torch.zeros(2, 512, dtype=dtype), inboxes, patience=patience)


CASES: dict[str, Callable[[], None]] = {
    f"{dtype}, {ranks} ranks, patience {patience}": partial(one_shot, dtype, ranks, patience)
    for dtype, ranks, patience in ((torch.bfloat16, 2, 0), (torch.bfloat16, 4, 1000), (torch.float32, 2, 0))
}
