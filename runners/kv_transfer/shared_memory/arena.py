"""Shared memory that one engine writes blocks to and others read: a mapped file of slots, with their state.

The engine's process says which block a slot is for; each of its ranks writes its part, and then says so.
Nobody is locked out: who reads a part finds out afterwards, by the slot's generation and the part's sum,
whether it is whole and was that block all the time. The engine holds a lock on the file as long as it lives.

The file, in 64-bit words: a header, the parts' regions, and by slot the key (two arrays), the generation and
for each part its mark and its sum; then the slots, each with its parts one after the other.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dodona.runners.after_fork import leave_after_fork
from dodona.runners.kv_transfer.regions import Region

SUFFIX = ".kv"
_UNFINISHED = ".new"
_MAGIC = int.from_bytes(b"dodonaK1", "little")
_HEADER_WORDS = 4
_REGION_WORDS = 5
_PAGE = 4096
_GIVEN_UP = 1 << 63
"""In a mark: the part of this generation will not be written."""


class ArenaError(Exception):
    """A file that is no arena, or whose engine is gone."""


class Arena:
    """A mapped file of slots; see the module. Opened by `create_arena` and `open_arena`."""

    def __init__(self, path: Path, descriptor: int, *, writes: bool) -> None:
        """Takes over the descriptor. Raises ArenaError."""
        self.path = path
        self._descriptor = descriptor
        self._closing = threading.Lock()
        size = os.fstat(descriptor).st_size
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writes else 0)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or size < _PAGE:
            raise ArenaError(f"{path} is no arena of KV blocks")
        # Opened again: the mapping keeps what it was made from, and with it would keep the lock.
        mapped = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR if writes else os.O_RDONLY)
        try:
            memory = mmap.mmap(mapped, size, flags=mmap.MAP_SHARED, prot=access)
        finally:
            os.close(mapped)
        self._bytes = np.frombuffer(memory, dtype=np.uint8)
        words = self._bytes[: size // 8 * 8].view(np.uint64)
        magic, self.num_slots, num_parts, self._data = (int(word) for word in words[:_HEADER_WORDS])
        table = _HEADER_WORDS + num_parts * _REGION_WORDS
        end = table + self.num_slots * (3 + 2 * num_parts)
        if magic != _MAGIC or not 0 < num_parts <= 4096 or end * 8 > min(self._data, size):
            raise ArenaError(f"{path} is no arena of KV blocks")
        self.regions: dict[Region, int] = {}
        """The parts, and their numbers."""
        self._sizes: list[int] = []
        for number in range(num_parts):
            start = _HEADER_WORDS + number * _REGION_WORDS
            *numbers, length = (int(word) for word in words[start : start + _REGION_WORDS])
            self.regions[Region(*numbers)] = number
            self._sizes.append(length)
        self._offsets = [sum(self._sizes[:number]) for number in range(num_parts)]
        self._slot_bytes = sum(self._sizes)
        if self._data + self.num_slots * self._slot_bytes > size:
            raise ArenaError(f"{path} is cut")
        fields = words[table:end].reshape(3 + 2 * num_parts, self.num_slots)
        self._first, self._second, self._generations = fields[0], fields[1], fields[2]
        self._marks, self._sums = fields[3 : 3 + num_parts], fields[3 + num_parts :]
        leave_after_fork(self)

    # --- The engine's process

    def assign(self, slot: int, key: bytes | None) -> int:
        """The slot is for the block with this key (16 bytes) from here on, or for none; what was in it is
        gone. Returns the slot's generation."""
        # Readers look at the key before and after the generation.
        self._first[slot] = self._second[slot] = 0
        generation = int(self._generations[slot]) + 1
        self._generations[slot] = generation
        if key is not None:
            self._second[slot] = int.from_bytes(key[8:], "little")
            self._first[slot] = int.from_bytes(key[:8], "little")
        return generation

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Slot and generation of the block with this key, which may not be written yet."""
        first, second = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
        for slot in np.flatnonzero(self._first == np.uint64(first)).tolist():
            generation = int(self._generations[slot])
            if self._second[slot] == second and self._first[slot] == first:
                return slot, generation
        return None

    # --- Ranks

    def write(self, slot: int, generation: int, part: int, content: np.ndarray[Any, Any]) -> None:
        """Write a part [bytes]; a rank writes one after the other."""
        if int(self._marks[part, slot]) & ~_GIVEN_UP > generation:
            return  # the slot is another block's, which was given up
        if len(content) != self._sizes[part]:
            raise ArenaError(f"a part of {len(content)} bytes, where the arena has {self._sizes[part]}")
        self._part(slot, part)[:] = content
        self._sums[part, slot] = _sum(content)
        self._marks[part, slot] = generation

    def give_up(self, slot: int, generation: int, part: int) -> None:
        """Say that the part will not be written."""
        self._marks[part, slot] = generation | _GIVEN_UP

    def is_settled(self, slot: int, generation: int) -> bool:
        """Whether the block is there, or nobody will write it any more."""
        if int(self._generations[slot]) != generation:
            return True
        marks = self._marks[:, slot].tolist()
        return any(mark == generation | _GIVEN_UP for mark in marks) or all(m == generation for m in marks)

    def read(self, slot: int, generation: int, part: int) -> np.ndarray[Any, Any]:
        """A copy of a part [bytes]. Raises ArenaError where it is not there, or was overwritten meanwhile."""
        if int(self._marks[part, slot]) != generation:
            raise ArenaError("it was not written")
        content = self._part(slot, part).copy()
        expected = int(self._sums[part, slot])
        if int(self._generations[slot]) != generation:
            raise ArenaError("its slot was taken for another block")
        if _sum(content) != expected:
            raise ArenaError("its sum is wrong")
        return content

    # --- Life

    def is_alive(self) -> bool:
        """Whether the engine that made it still runs. For others than that engine."""
        with self._closing:
            if self._descriptor < 0:
                return False
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            return False

    def close(self, *, remove: bool = False) -> None:
        """Give up the lock, and the file where `remove`; the memory goes with the last who maps it.
        Idempotent."""
        with self._closing:
            if self._descriptor >= 0:
                if remove:
                    self.path.unlink(missing_ok=True)
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
                os.close(self._descriptor)
                self._descriptor = -1

    def leave_to_parent(self) -> None:
        """In a child process after a fork: the lock is the parent's, and ends with it."""
        self._closing = threading.Lock()  # a thread of the parent may have held the other
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _part(self, slot: int, part: int) -> np.ndarray[Any, Any]:
        start = self._data + slot * self._slot_bytes + self._offsets[part]
        return self._bytes[start : start + self._sizes[part]]


def create_arena(folder: Path, num_slots: int, parts: Sequence[tuple[Region, int]]) -> Arena:
    """A new arena, locked by this process, in a folder.

    parts: what each rank that writes has of a block, and its bytes. Raises OSError where there is not enough
    memory. Arenas of engines that are gone are removed.
    """
    for path in files_of_ended(folder):
        with suppress(OSError):
            path.unlink(missing_ok=True)
    table = _HEADER_WORDS + len(parts) * _REGION_WORDS + num_slots * (3 + 2 * len(parts))
    data = -(-table * 8 // _PAGE) * _PAGE
    header = [_MAGIC, num_slots, len(parts), data]
    for region, size in parts:
        header += [region.first_layer, region.end_layer, region.share, region.shares, size]
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    unfinished = path.with_suffix(_UNFINISHED)
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A mapped file without memory behind it would end the process at a write.
        os.posix_fallocate(descriptor, 0, data + num_slots * sum(size for _, size in parts))
        os.pwrite(descriptor, np.array(header, dtype=np.uint64).tobytes(), 0)
        arena = Arena(path, descriptor, writes=True)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return arena


def files_of_ended(folder: Path) -> Iterator[Path]:
    """Arenas of engines that are gone, and what engines left that ended while they made one. Each is that as
    long as the next isn't asked for."""
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError, ArenaError):
            arena = open_arena(path, writes=False)
            try:
                if not arena.is_alive():
                    yield path
            finally:
                arena.close()
    for path in folder.glob(f"*{_UNFINISHED}"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                found = os.fstat(descriptor)
                # One that is being made is locked from before it has a size.
                if stat.S_ISREG(found.st_mode) and found.st_size:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield path
            finally:
                os.close(descriptor)


def open_arena(path: Path, *, writes: bool) -> Arena:
    """An engine's arena; writes: for the engine's ranks. Raises ArenaError, and OSError where it is gone."""
    # without O_NONBLOCK, opening a pipe waits for a writer
    descriptor = os.open(path, (os.O_RDWR if writes else os.O_RDONLY) | os.O_NONBLOCK)
    try:
        return Arena(path, descriptor, writes=writes)
    except BaseException:
        os.close(descriptor)
        raise


def _sum(content: np.ndarray[Any, Any]) -> int:
    """The sum of its words, modulo 2**64; of its bytes where it has no whole words."""
    words = content.view(np.uint64) if len(content) % 8 == 0 else content
    return int(words.sum(dtype=np.uint64))
