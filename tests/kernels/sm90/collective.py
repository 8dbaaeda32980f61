"""Sums over ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.collective.messages import make_inboxes
from dodona.kernels.collective.one_shot_sum import one_shot_sum
from dodona.kernels.collective.two_shot_sum import two_shot_sum


def add_up(function: Callable[..., torch.Tensor], dtype: torch.dtype, ranks: int, patience: int) -> None:
    inboxes = make_inboxes(ranks - 1, [0] * ranks, torch.device("cpu"))
    function(torch.zeros(2, 512, dtype=dtype), inboxes, patience=patience)


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
    )
}
