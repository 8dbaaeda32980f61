"""Parts of blocks in the canonical layout: their sizes, and one part put together from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from dodona.runners.interface import KVPart
from dodona.runners.kv_transfer.regions import Region, cover


class PartLayout:
    """The layout of a rank's part of each block, and of any other part of the same blocks."""

    def __init__(self, part: KVPart, *, block_size: int, dtype: torch.dtype) -> None:
        self.own = Region.of(part)
        self.whole = Region(0, len(part.layers))
        self.dtype = dtype
        self.layers = part.layers
        """The model's."""
        self._block_size = block_size

    def elements(self, region: Region) -> int:
        """Elements of a region of a block."""
        return region.elements(self.layers, self._block_size)

    def assemble(
        self, stored: Iterable[Region], read: Callable[[Region], torch.Tensor]
    ) -> torch.Tensor | None:
        """The rank's own part [elements], taken from regions that `read` gives, [elements] each; None where
        the stored ones don't cover it."""
        sources = cover(self.own, [region for region in stored if region.is_of(self.layers)])
        if sources is None:
            return None
        if sources == [self.own]:
            return read(self.own)
        block = torch.empty(self.elements(self.own), dtype=self.dtype)
        wanted = dict(self._views(self.own, block))
        for source in sources:
            for layer, tensors in self._views(source, read(source)):
                if layer not in wanted:
                    continue
                ours, theirs = self.own.heads(self.layers[layer]), source.heads(self.layers[layer])
                first, end = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
                if first < end:
                    for to, of in zip(wanted[layer], tensors, strict=True):
                        taken = of[:, first - theirs.start : end - theirs.start]
                        to[:, first - ours.start : end - ours.start] = taken
        return block

    def _views(self, region: Region, block: torch.Tensor) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """By layer, its keys and values [block_size, heads of the region, head_size] in a packed region."""
        start = 0
        for layer in range(region.first_layer, region.end_layer):
            spec, tensors = self.layers[layer], []
            for size in (spec.head_size_k, spec.head_size_v):
                shape = (self._block_size, len(region.heads(spec)), size)
                count = shape[0] * shape[1] * shape[2]
                tensors.append(block[start : start + count].view(shape))
                start += count
            yield layer, tensors
