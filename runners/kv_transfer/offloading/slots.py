"""Which block is in which slot of the host's memory; the one unused for the longest makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path


class HostSlots:
    """A `BlockIndex` of slots 0 .. num_slots-1. Every operation is O(1) per slot."""

    def __init__(self, num_slots: int) -> None:
        self._by_hash: OrderedDict[bytes, int] = OrderedDict()
        """The one used last comes last; without those that a load reads."""
        self._unused = iter(range(num_slots))
        """Those that no block was in; a large memory has more than a list should hold."""
        self._free: list[int] = []
        """Those whose block was forgotten."""
        self._in_use: dict[bytes, int] = {}
        self._outdated: set[bytes] = set()
        """Those in use that are to be forgotten."""

    def __len__(self) -> int:
        return len(self._by_hash) + len(self._in_use)

    def find(self, value: bytes) -> bool | None:
        """Whether the block is there; None while a load reads it."""
        return None if value in self._in_use else value in self._by_hash

    def reserve(self, value: bytes) -> int | None:
        """A slot for a block. None where it is there, and then counts as used now, or where loads read all
        slots."""
        if value in self._by_hash:
            self._by_hash.move_to_end(value)
            return None
        if value in self._in_use:
            return None
        slot = self._free.pop() if self._free else next(self._unused, None)
        if slot is None:
            if not self._by_hash:
                return None
            _, slot = self._by_hash.popitem(last=False)
        self._by_hash[value] = slot
        return slot

    def begin_load(self, values: Sequence[bytes]) -> Sequence[int]:
        """The slots of these blocks, which no other load reads; they keep them until `end_load`."""
        slots = []
        for value in values:
            slots.append(self._by_hash.pop(value))
            self._in_use[value] = slots[-1]
        return slots

    def end_load(self, values: Sequence[bytes]) -> None:
        """The load of these blocks ended."""
        for value in values:
            slot = self._in_use.pop(value)
            if value in self._outdated:
                self._outdated.remove(value)
                self._free.append(slot)
            else:
                self._by_hash[value] = slot

    def fingerprint(self, weights: Path | None) -> None:
        """None: no other engine finds these blocks."""
        return None

    def clear(self, fingerprint: str | None = None) -> None:
        """Forget all blocks; those that are read at present, at the end of their load."""
        self._free.extend(self._by_hash.values())
        self._by_hash.clear()
        self._outdated.update(self._in_use)
