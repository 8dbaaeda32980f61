"""Which window block belongs to a KV block, for each group of attention calls that has window blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from dodona.runners.interface import CacheGroup


class WindowTables:
    """The window block of each of `num_blocks` blocks, by group (`KVCacheSpec.window_groups`)."""

    def __init__(self, groups: Sequence[CacheGroup], num_blocks: int) -> None:
        self._calls = tuple(group.layers for group in groups)
        # A block without a window block is never read: any id does for it.
        self._attached = np.zeros((len(groups), num_blocks), dtype=np.int64)

    def attach(self, window_blocks: Iterable[tuple[int, int, int]]) -> None:
        """Apply `SchedulerOutput.window_blocks`."""
        for group, block_id, window_block in window_blocks:
            self._attached[group, block_id] = window_block

    def tables(
        self, block_tables: npt.NDArray[np.int64]
    ) -> Iterable[tuple[tuple[int, ...], npt.NDArray[np.int64]]]:
        """For each group, its attention calls and the block tables [rows, blocks] of its window blocks."""
        return [
            (calls, attached[block_tables])
            for calls, attached in zip(self._calls, self._attached, strict=True)
        ]
