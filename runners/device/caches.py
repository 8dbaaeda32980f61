"""Allocates KV caches."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def zero_caches(
    shapes: Sequence[tuple[int, ...]], *, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """One cache of zeros for each shape, contiguous.

    Equal shapes lie in one allocation, layer after layer, so that one launch can copy blocks of all layers
    (`kv_transfer.block_layout`).
    """
    if len(set(shapes)) == 1:
        return list(torch.zeros((len(shapes), *shapes[0]), dtype=dtype, device=device).unbind())
    return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
