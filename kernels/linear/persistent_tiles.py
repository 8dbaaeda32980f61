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
    ring: int = 48 << 10
    """Bytes of weights under way in a program."""
    late: bool = False
    """Whether the next kernel's programs may begin only when this one's are in their last tiles."""


def choose_persistent_tiles(weight: QuantizedWeight, *, silu_mul: bool) -> PersistentTiles:
    """Tiles for a product with a weight, of half its rows with `silu_mul`; as measured on an H200."""
    if weight.kind == "int4":
        return PersistentTiles(8, programs=2, room=2)
    if weight.group_size is None:
        return PersistentTiles(8, room=2, ring=80 << 10)
    few = silu_mul or weight.inner > 4096 or weight.rows <= 4096
    return PersistentTiles(8, programs=1 if few else 2, room=2)
