"""Blocks as safetensors files: written whole or not at all, and read only if they are what was written."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_prefix
from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.storage.paths import PARTS, SUFFIX, stored_regions
from dodona.runners.kv_transfer.threaded_worker import DamagedBlockError

logger = logging.getLogger("dodona.kv_transfer")

_TEMPORARY = ".tmp"
_TENSOR = "kv"
_MAX_HEADER_BYTES = 4096
"""Of a file's header, which has a path and a checksum."""
_ABANDONED_SECONDS = 600
"""Age from which a temporary file is that of a process that died while it wrote."""


class BlockFiles:
    """The files below `root`, of all engines that share it; at most about `max_bytes` of them.

    A file holds the tensor `kv` [elements] in the canonical layout, and in its metadata its own path and a
    checksum of path and content, so that a damaged, exchanged or truncated file is noticed. Files are written
    under another name and renamed: a process that dies leaves no file with a block's name.
    """

    def __init__(self, root: Path, *, max_bytes: int | None) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._written_bytes = 0
        """Since the last look at what all engines wrote; the first write looks."""
        self._known_bytes: int | None = None

    def regions(self, path: str, layers: Sequence[LayerKVSpec]) -> Sequence[Region]:
        """The regions of the block with this path that are stored; the whole one comes first. layers: the
        model's."""
        return stored_regions(self._root, path, layers)

    def read(self, path: str, *, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """The block [elements], and count it as used now.

        Raises OSError where the file can't be read, and DamagedBlockError; a damaged file is removed.
        """
        data = self._read_bytes(path, elements * dtype.itemsize + _MAX_HEADER_BYTES)
        try:
            found = _decode(data, path, elements, dtype)
        except DamagedBlockError as error:
            logger.warning("KV block %s is damaged and is computed again: %s", self._root / path, error)
            self.remove(path)
            raise
        self._touch(path)
        return found

    def write(self, path: str, block: torch.Tensor) -> None:
        """Store a block [elements] unless it is there. Raises OSError."""
        target = self._root / path
        if target.exists():
            return
        data = _encode(block, path)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f"{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            self._write_bytes(temporary, data)
            temporary.rename(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._count(len(data))

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        _remove(self._root / path)

    def _read_bytes(self, path: str, limit: int) -> bytes:
        """At most `limit` + 1 bytes of a regular file."""
        file = self._root / path
        if not file.exists():
            raise FileNotFoundError(f"{file}: is not there")
        try:
            return read_prefix(file, limit=limit)
        except ConfigError as error:
            raise OSError(str(error)) from error

    def _write_bytes(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def _touch(self, path: str) -> None:
        try:
            os.utime(self._root / path)
        except OSError:
            logger.debug("KV block %s was removed while it was read", path)

    def _count(self, size: int) -> None:
        """Count what was written, and remove the blocks unused for the longest where it is too much."""
        if self._max_bytes is None:
            return
        self._written_bytes += size
        if self._known_bytes is not None and self._known_bytes + self._written_bytes <= self._max_bytes:
            return
        files = self._blocks()
        total = sum(size for _, size, _ in files)
        # Down to less than the bound, so that not every write looks at all files.
        goal = self._max_bytes if total <= self._max_bytes else self._max_bytes * 9 // 10
        for _, size, paths in files:
            if total <= goal:
                break
            for path in paths:
                _remove(path)
            total -= size
        self._known_bytes, self._written_bytes = total, 0

    def _blocks(self) -> list[tuple[float, int, list[Path]]]:
        """Time of last use, bytes and files of each block, those unused for the longest first."""
        parts: dict[Path, list[tuple[float, int, Path]]] = {}
        for used, size, path in self._scan():
            block = path.parent if path.parent.name.endswith(PARTS) else path
            parts.setdefault(block, []).append((used, size, path))
        return sorted(
            (max(used for used, *_ in files), sum(size for _, size, _ in files), [p for *_, p in files])
            for files in parts.values()
        )

    def _scan(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of each file; temporary files that nobody will finish go."""
        now = time.time()
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.lstat()
                    if name.endswith(_TEMPORARY) and now - status.st_mtime > _ABANDONED_SECONDS:
                        path.unlink(missing_ok=True)
                    elif name.endswith(SUFFIX):
                        yield status.st_mtime, status.st_size, path
                except OSError:
                    continue  # another engine removed it, or it is another user's


def _remove(file: Path) -> None:
    """Remove a file, and the folder of parts that it was the last one of."""
    file.unlink(missing_ok=True)
    if file.parent.name.endswith(PARTS):
        with suppress(OSError):
            file.parent.rmdir()


def _encode(block: torch.Tensor, path: str) -> bytes:
    metadata = {"path": path, "checksum": _checksum(block, path)}
    return safetensors.torch.save({_TENSOR: block}, metadata)


def _decode(data: bytes, path: str, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """The tensor [elements] of a file. Raises DamagedBlockError."""
    try:
        block = safetensors.torch.load(data)[_TENSOR]
        metadata = _metadata(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedBlockError(f"no file of a block ({type(error).__name__})") from error
    if block.shape != (elements,) or block.dtype != dtype:
        raise DamagedBlockError(f"it holds {block.dtype} {tuple(block.shape)}")
    if metadata.get("path") != path:
        raise DamagedBlockError("it is the file of another block")
    if metadata.get("checksum") != _checksum(block, path):
        raise DamagedBlockError("its checksum is wrong")
    return block


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + length]).get("__metadata__")
    return found if isinstance(found, dict) else {}


def _checksum(block: torch.Tensor, path: str) -> str:
    digest = blake2b(f"{path} {block.dtype} {tuple(block.shape)} ".encode(), digest_size=16)
    digest.update(block.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
