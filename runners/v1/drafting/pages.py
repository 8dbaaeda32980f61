"""Where a draft with KV of its own writes it: the blocks of the target's ids, and blocks of a row's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dodona.runners.drafting.kv_blocks import own_blocks
from dodona.runners.interface import LayerKVSpec
from dodona.runners.v1.drafting.drafter import DraftContext
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.step_layout import StepLayout


class DraftPass(NamedTuple):
    """Entries of one row in one pass of the draft."""

    context: DraftContext
    start: int
    """Position of the first entry."""
    num_entries: int


class DraftPages:
    """A draft's KV cache. What is kept lies in the target's blocks: a block that is found in the prefix cache
    has the draft's KV, too. What belongs to drafts alone may reach beyond a row's blocks, and then goes into
    blocks that are the row's for as long as the engine lives.
    """

    def __init__(
        self,
        layers: Sequence[LayerKVSpec],
        *,
        num_blocks: int,
        num_rows: int,
        block_size: int,
        num_speculative_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._per_row = own_blocks(num_speculative_tokens, block_size)
        self._device = device
        self.cache = PagedKVCache(layers, num_blocks + num_rows * self._per_row, block_size, dtype, device)

    def layout(self, passes: Sequence[DraftPass]) -> StepLayout:
        """The layout of a pass, row after row."""
        needed = [-(-(p.start + p.num_entries) // self._block_size) for p in passes]
        tables = np.zeros((len(passes), max(needed)), dtype=np.int64)
        for table, (context, _, _), count in zip(tables, passes, needed, strict=True):
            own = self._num_blocks + context.row * self._per_row
            table[:count] = [*context.state.block_ids, *range(own, own + self._per_row)][:count]
        return StepLayout(
            [p.num_entries for p in passes], [p.start for p in passes], tables, self._block_size, self._device
        )
