"""Blocks in the shared storage as one rank writes and reads them: its part of each."""

from __future__ import annotations

import torch

from dodona.runners.kv_transfer.block_transfers import Place
from dodona.runners.kv_transfer.part_layout import PartLayout
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.paths import region_path


class StoredBlocks:
    """A `threaded_worker.BlockStore` of files. A rank writes what it has of a block to a file of its own, and
    takes what it needs from the files that are there, whatever ranks of whatever engine wrote them."""

    def __init__(self, files: BlockFiles, layout: PartLayout) -> None:
        self._files = files
        self._layout = layout

    def is_settled(self, place: Place) -> bool:
        """True: a block is found once its files are there."""
        return True

    def write(self, place: Place, block: torch.Tensor) -> None:
        """Store this rank's part [elements] of the block with this path, unless it is there. Raises
        OSError."""
        self._files.write(region_path(str(place), self._layout.own, self._layout.whole), block)

    def give_up(self, place: Place) -> None:
        """Nothing: what is not written is not there."""

    def read(self, place: Place) -> torch.Tensor:
        """This rank's part [elements] of the block with this path.

        Raises OSError where a file can't be read, or some of it is in no file; and DamagedBlockError.
        """
        path, layout = str(place), self._layout

        def read(region: Region) -> torch.Tensor:
            return self._files.read(
                region_path(path, region, layout.whole), elements=layout.elements(region), dtype=layout.dtype
            )

        block = layout.assemble(self._files.regions(path, layout.layers), read)
        if block is None:
            raise FileNotFoundError(f"{path}: not all parts of the block are stored")
        return block
