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
    """Programs for which a multiprocessor's registers must suffice; 1: as the compiler likes."""
    ring: int = 80 << 10
    """Bytes of weights under way in a program."""


def choose_persistent_tiles(weight: QuantizedWeight) -> PersistentTiles:
    """Tiles for a product with a weight; as measured on an H200, in chains of a whole step's kernels."""
    is_deep = weight.inner > 8192
    is_small = not is_deep and weight.rows <= 8192
    if weight.kind == "int4" and weight.zeros is None:
        return PersistentTiles(8, programs=2, room=2, ring=48 << 10)
    if weight.kind == "int4":
        return PersistentTiles(16) if is_deep else PersistentTiles(8, programs=2, ring=48 << 10)
    if weight.group_size is not None:
        return (
            PersistentTiles(8, programs=2, ring=48 << 10) if is_small else PersistentTiles(16, ring=96 << 10)
        )
    return PersistentTiles(8, programs=3, ring=48 << 10) if is_small else PersistentTiles(8, programs=2)
