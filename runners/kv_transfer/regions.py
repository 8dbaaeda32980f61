"""Which part of a block a file holds, and which files together hold what a rank needs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dodona.runners.interface import KVPart, LayerKVSpec

_NAME = re.compile(r"(\d{1,9})-(\d{1,9})\.(\d{1,9})of(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Region:
    """Consecutive layers of a block, and of each of them one of the equal shares of its heads. Of a layer
    with fewer heads than shares, neighbouring ones have the same head."""

    first_layer: int
    end_layer: int
    share: int = 0
    shares: int = 1

    @classmethod
    def of(cls, part: KVPart) -> Region:
        """What a rank has."""
        end = part.first_layer + part.num_layers
        return cls(part.first_layer, end, part.head_share, part.head_shares)

    @classmethod
    def parse(cls, name: str) -> Region | None:
        """The region with this name; None where no region has it."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        first, end, share, shares = map(int, found.groups())
        return cls(first, end, share, shares) if first < end and share < shares else None

    def is_of(self, layers: Sequence[LayerKVSpec]) -> bool:
        """Whether a rank of a model with these layers can have it: what a file says may be anything."""
        if not (0 <= self.first_layer < self.end_layer <= len(layers) and 0 <= self.share < self.shares):
            return False
        heads = {layer.num_kv_heads for layer in layers[self.first_layer : self.end_layer]}
        return math.lcm(*heads) % self.shares == 0 and all(
            count % self.shares == 0 or self.shares % count == 0 for count in heads
        )

    @property
    def name(self) -> str:
        """Its name, in a file's path."""
        return f"{self.first_layer}-{self.end_layer}.{self.share}of{self.shares}"

    def heads(self, layer: LayerKVSpec) -> range:
        """The heads of this layer that are in it."""
        first = self.share * layer.num_kv_heads // self.shares
        return range(first, first + max(1, layer.num_kv_heads // self.shares))

    def elements(self, layers: Sequence[LayerKVSpec], block_size: int) -> int:
        """Elements of a block's region; layers: the model's."""
        return block_size * sum(
            len(self.heads(layer)) * (layer.head_size_k + layer.head_size_v)
            for layer in layers[self.first_layer : self.end_layer]
        )

    def _cells(self, units: int) -> set[tuple[int, int]]:
        """Its layers by `units` shares of their heads, a multiple of `shares`."""
        width = units // self.shares
        heads = range(self.share * width, (self.share + 1) * width)
        return {(layer, unit) for layer in range(self.first_layer, self.end_layer) for unit in heads}


def cover(wanted: Region, stored: Iterable[Region]) -> list[Region] | None:
    """The regions of `stored` to take `wanted` from, as few as a greedy choice finds; None where some of it
    is in none of them."""
    found = list(stored)
    if wanted in found:
        return [wanted]
    units = math.lcm(wanted.shares, *(region.shares for region in found))
    missing, chosen = wanted._cells(units), []
    while missing:
        gains = [(len(missing & region._cells(units)), index) for index, region in enumerate(found)]
        gain, index = max(gains, default=(0, 0))
        if not gain:
            return None
        chosen.append(found[index])
        missing -= found[index]._cells(units)
    return chosen
