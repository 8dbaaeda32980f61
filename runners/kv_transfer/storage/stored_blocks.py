"""Blocks in the shared storage as one rank writes and reads them: its part of each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dodona.runners.interface import KVPart
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.paths import region_path
from dodona.runners.kv_transfer.storage.regions import Region, cover


class StoredBlocks:
    """A rank writes what it has of a block to a file of its own, and takes what it needs from the files that
    are there, whatever ranks of whatever engine wrote them."""

    def __init__(self, files: BlockFiles, part: KVPart, *, block_size: int, dtype: torch.dtype) -> None:
        self._files = files
        self._layers = part.layers
        self._own = Region.of(part)
        self._whole = Region(0, len(part.layers))
        self._block_size = block_size
        self._dtype = dtype

    def write(self, path: str, block: torch.Tensor) -> None:
        """Store this rank's part [elements] of the block with this path, unless it is there. Raises
        OSError."""
        self._files.write(region_path(path, self._own, self._whole), block)

    def read(self, path: str) -> torch.Tensor:
        """This rank's part [elements] of the block with this path.

        Raises OSError where a file can't be read, or some of it is in no file; and DamagedBlockError.
        """
        sources = cover(self._own, self._files.regions(path, self._whole))
        if sources is None:
            raise FileNotFoundError(f"{path}: not all parts of the block are stored")
        if sources == [self._own]:
            return self._read(path, self._own)
        block = torch.empty(self._elements(self._own), dtype=self._dtype)
        wanted = dict(self._views(self._own, block))
        for source in sources:
            for layer, tensors in self._views(source, self._read(path, source)):
                if layer in wanted:
                    ours, theirs = self._own.heads(self._layers[layer]), source.heads(self._layers[layer])
                    first, end = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
                    for to, of in zip(wanted[layer], tensors, strict=True):
                        if first < end:
                            to[:, first - ours.start : end - ours.start] = of[
                                :, first - theirs.start : end - theirs.start
                            ]
        return block

    def _read(self, path: str, region: Region) -> torch.Tensor:
        return self._files.read(
            region_path(path, region, self._whole), elements=self._elements(region), dtype=self._dtype
        )

    def _elements(self, region: Region) -> int:
        return region.elements(self._layers, self._block_size)

    def _views(self, region: Region, block: torch.Tensor) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """By layer, its keys and values [block_size, heads of the region, head_size] in a packed block."""
        start = 0
        for layer in range(region.first_layer, region.end_layer):
            spec, tensors = self._layers[layer], []
            for size in (spec.head_size_k, spec.head_size_v):
                shape = (self._block_size, len(region.heads(spec)), size)
                count = shape[0] * shape[1] * shape[2]
                tensors.append(block[start : start + count].view(shape))
                start += count
            yield layer, tensors
