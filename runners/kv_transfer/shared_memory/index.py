"""Which blocks an engine has announced to others in its arena, and which others have announced to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from dodona.runners.kv_transfer.shared_index import SharedIndex
from dodona.runners.kv_transfer.shared_memory.arena import SUFFIX, Arena, ArenaError, open_arena


def place_of(arena: str, slot: int, generation: int) -> str:
    """A block's place: the name of an arena, a slot, and the slot's generation."""
    return f"{arena}/{slot}/{generation}"


def parse_place(place: str) -> tuple[str, int, int]:
    """Its parts."""
    arena, slot, generation = place.split("/")
    return arena, int(slot), int(generation)


class OwnSlots:
    """The slots of this engine's arena. A block is announced, is then given to the ranks to be written, and
    later makes room for others, the one unused for the longest first."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._free = list(range(arena.num_slots - 1, -1, -1))
        self._announced: dict[bytes, tuple[int, int]] = {}
        """By key, slot and generation."""
        self._given: OrderedDict[bytes, int] = OrderedDict()
        """By key, the slots of blocks that were given to the ranks; the one used last comes last."""

    def announce(self, keys: Iterable[bytes]) -> list[bytes]:
        """Say that these blocks will come. Returns those that were not known; blocks without a slot are left
        out."""
        new = []
        for key in keys:
            if key not in self._announced and key not in self._given:
                slot = self._take_slot()
                if slot is None:
                    break
                self._announced[key] = slot, self._arena.assign(slot, key)
                new.append(key)
        return new

    def withdraw(self, keys: Iterable[bytes]) -> None:
        """Say that those of these that were only announced will not come."""
        for key in keys:
            if key in self._announced:
                slot, _ = self._announced.pop(key)
                self._arena.assign(slot, None)
                self._free.append(slot)

    def reserve(self, key: bytes) -> str | None:
        """Where the ranks write the block; None where they have, or where there is no slot."""
        if key in self._given:
            self._given.move_to_end(key)
            return None
        if key not in self._announced and not self.announce([key]):
            return None
        slot, generation = self._announced.pop(key)
        self._given[key] = slot
        return place_of(self._arena.path.name, slot, generation)

    def clear(self) -> None:
        """Forget all blocks."""
        self.withdraw(list(self._announced))
        for slot in self._given.values():
            self._arena.assign(slot, None)
        self._free.extend(self._given.values())
        self._given.clear()

    def _take_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        return self._given.popitem(last=False)[1] if self._given else None


class OtherArenas:
    """The arenas of the other engines that share a folder."""

    def __init__(self, folder: Path, own: str | None) -> None:
        self._folder = folder
        self._own = own
        self._open: dict[str, Arena] = {}

    def look(self) -> None:
        """Open the arenas that came, and leave those whose engine is gone."""
        names = {path.name for path in self._folder.glob(f"*{SUFFIX}")} - {self._own}
        for name, arena in list(self._open.items()):
            if name not in names or not arena.is_alive():
                self._open.pop(name).close()
        for name in sorted(names - self._open.keys()):
            with suppress(OSError, ArenaError):
                arena = open_arena(self._folder / name, writes=False)
                if arena.is_alive():
                    self._open[name] = arena
                else:
                    arena.close()

    def find(self, key: bytes) -> str | None:
        """The place of a block that one of them has announced."""
        for name, arena in self._open.items():
            found = arena.find(key)
            if found is not None:
                return place_of(name, *found)
        return None

    def close(self) -> None:
        """Leave them."""
        while self._open:
            self._open.popitem()[1].close()


class SharedMemoryIndex(SharedIndex):
    """A `BlockIndex` of what is announced: by this engine to others (`own`), and by others to it."""

    def __init__(
        self,
        namespace: str,
        *,
        own: OwnSlots | None,
        others: OtherArenas | None,
        namespace_of: Callable[[Path | None], str] | None = None,
    ) -> None:
        """own: None where this engine hands out nothing. others: None where it takes nothing."""
        super().__init__(namespace, namespace_of)
        self._own = own
        self._others = others
        self._found: dict[bytes, str] = {}
        """Places of the blocks found last."""

    def announce(self, values: Sequence[bytes]) -> list[bytes]:
        """Say to others that these blocks will come; returns those that were not known yet."""
        if self._own is None:
            return []
        hashes = {self._key(value): value for value in values}
        return [hashes[key] for key in self._own.announce(hashes)]

    def withdraw(self, values: Sequence[bytes]) -> None:
        """Those of these that were only announced will not come."""
        if self._own is not None:
            self._own.withdraw(map(self._key, values))

    def begin_search(self) -> None:
        """The blocks of a request are to be found."""
        self._found.clear()
        if self._others is not None:
            self._others.look()

    def find(self, value: bytes) -> bool | None:
        """Whether another engine has the block, or will have it; None while another load reads it."""
        if self._others is None:
            return False
        if value in self._loading:
            return None
        place = self._others.find(self._key(value))
        if place is not None:
            self._found[value] = place
        return place is not None

    def reserve(self, value: bytes) -> str | None:
        """Where the ranks write the block for others; None where there is no need."""
        return None if self._own is None else self._own.reserve(self._key(value))

    def begin_load(self, values: Sequence[bytes]) -> Sequence[str]:
        """The places of these blocks, as they were found."""
        self._loading.update(values)
        return [self._found[value] for value in values]

    def clear(self, fingerprint: str | None = None) -> None:
        """See `SharedIndex`; also forget what was announced."""
        super().clear(fingerprint)
        if self._own is not None:
            self._own.clear()

    def close(self) -> None:
        """Leave the other engines' arenas."""
        if self._others is not None:
            self._others.close()

    def _key(self, value: bytes) -> bytes:
        return blake2b(value, digest_size=16, key=self._namespace.encode()[:64]).digest()
