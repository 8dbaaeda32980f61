"""How `quantized_persistent_linear` is run."""

from __future__ import annotations

from dataclasses import dataclass

from dodona.kernels.linear.quantized_weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class PersistentTiles:
    """How the kernel is run."""

    num_warps: int
    """8 or 16; they share the inner dimension."""
    programs: int = 1
    """Programs per multiprocessor."""
    room: int = 1
    """Programs for which a multiprocessor's registers suffice: more than `programs` lets the next kernel's
    begin beside them."""
    ring: int = 80 << 10
    """Bytes of weights under way in a program."""


def choose_persistent_tiles(weight: QuantizedWeight) -> PersistentTiles:
    """Tiles for a product with a weight; as measured on an H200. Programs fill the multiprocessors, so that
    each has as many of a kernel's as every other."""
    if weight.group_size is not None and weight.kind != "int4":
        return PersistentTiles(8, ring=96 << 10)
    return PersistentTiles(8, programs=2, room=2, ring=(48 if weight.kind == "int4" else 80) << 10)
