"""The worker's side of SharedMemoryConnector: threads copy this rank's parts to and from arenas."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import torch

from dodona.runners.kv_transfer.block_transfers import Place
from dodona.runners.kv_transfer.part_layout import PartLayout
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.shared_memory.arena import Arena, ArenaError, open_arena
from dodona.runners.kv_transfer.shared_memory.index import parse_place
from dodona.runners.kv_transfer.threaded_worker import BlockStore, DamagedBlockError, ThreadedWorker


class Arenas:
    """The arenas in a folder that this rank reads from or writes to, opened once. Threads share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[str, bool], Arena] = {}
        self._lock = threading.Lock()

    def get(self, name: str, *, writes: bool) -> Arena:
        """The arena with this name. Raises ArenaError and OSError."""
        with self._lock:
            if (name, writes) not in self._open:
                self._leave_those_that_ended()
                self._open[name, writes] = open_arena(self._folder / name, writes=writes)
            return self._open[name, writes]

    def close(self) -> None:
        """Leave all. Idempotent."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _leave_those_that_ended(self) -> None:
        for key, arena in list(self._open.items()):
            if not arena.path.exists():
                self._open.pop(key).close()


class ArenaBlocks:
    """A `threaded_worker.BlockStore` of arenas."""

    def __init__(self, arenas: Arenas, layout: PartLayout) -> None:
        self._arenas = arenas
        self._layout = layout

    def is_settled(self, place: Place) -> bool:
        """Whether the block is there, or will not come: nobody writes it, or its engine is gone."""
        name, slot, generation = parse_place(str(place))
        try:
            arena = self._arenas.get(name, writes=False)
        except (OSError, ArenaError):
            return True
        return arena.is_settled(slot, generation) or not arena.is_alive()

    def write(self, place: Place, block: torch.Tensor) -> None:
        """Write this rank's part [elements] of a block. Raises OSError where the engine has ended."""
        name, slot, generation = parse_place(str(place))
        try:
            arena = self._arenas.get(name, writes=True)
            part = arena.regions[self._layout.own]
            arena.write(slot, generation, part, block.contiguous().view(torch.uint8).numpy())
        except (KeyError, ArenaError) as error:
            raise OSError(f"{name}: {error}") from error

    def give_up(self, place: Place) -> None:
        """Let nobody wait for the block."""
        name, slot, generation = parse_place(str(place))
        try:
            arena = self._arenas.get(name, writes=True)
            arena.give_up(slot, generation, arena.regions[self._layout.own])
        except (KeyError, OSError, ArenaError):
            return  # the engine has ended, or is about to

    def read(self, place: Place) -> torch.Tensor:
        """This rank's part [elements] of a block, from the parts that ranks of whatever number wrote. Raises
        OSError, and DamagedBlockError where it is not there or changed meanwhile."""
        name, slot, generation = parse_place(str(place))
        layout = self._layout

        def read(region: Region) -> torch.Tensor:
            content = torch.from_numpy(arena.read(slot, generation, arena.regions[region]))
            if len(content) != layout.elements(region) * layout.dtype.itemsize:
                raise DamagedBlockError(f"{place}: {region.name} has {len(content)} bytes")
            return content.view(layout.dtype)

        try:
            arena = self._arenas.get(name, writes=False)
            block = layout.assemble(arena.regions, read)
        except ArenaError as error:
            raise DamagedBlockError(f"{place}: {error}") from error
        if block is None:
            raise DamagedBlockError(f"{place}: its parts do not cover this rank's")
        return block


class SharedMemoryWorker(ThreadedWorker):
    """Writes this rank's parts to the engine's arena, and reads what it needs from those of others."""

    def __init__(
        self,
        folder: Path,
        *,
        wait_seconds: float,
        readers: Executor | None = None,
        writer: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(readers=readers, writer=writer, wait_seconds=wait_seconds, clock=clock)
        self._arenas = Arenas(folder)

    def make_store(self, layout: PartLayout) -> BlockStore:
        """The arenas, for parts of this layout."""
        return ArenaBlocks(self._arenas, layout)

    def shutdown(self) -> None:
        """Finish what is under way, and leave the arenas. Idempotent."""
        super().shutdown()
        self._arenas.close()
