"""Which blocks are in the shared storage: those whose files are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dodona.runners.kv_transfer.shared_index import SharedIndex
from dodona.runners.kv_transfer.storage.paths import block_path


class StorageIndex(SharedIndex):
    """A `BlockIndex` of files. Blocks that another engine wrote are found as soon as they are there."""

    def __init__(
        self,
        namespace: str,
        exists: Callable[[str], bool],
        *,
        namespace_of: Callable[[Path | None], str] | None = None,
        loads: bool = True,
        stores: bool = True,
    ) -> None:
        """namespace: folder of the blocks, below the root. exists: whether all of the block with this path is
        stored below the root. loads, stores: what this engine's role lets it do."""
        super().__init__(namespace, namespace_of)
        self._exists = exists
        self._loads = loads
        self._stores = stores

    def find(self, value: bytes) -> bool | None:
        """Whether the block is there; None while another load reads it."""
        if value in self._loading:
            return None
        return self._loads and self._exists(self._path(value))

    def reserve(self, value: bytes) -> str | None:
        """The path of the block's file; None where the block is there."""
        path = self._path(value)
        return path if self._stores and not self._exists(path) else None

    def begin_load(self, values: Sequence[bytes]) -> Sequence[str]:
        """The paths of these blocks' files."""
        self._loading.update(values)
        return [self._path(value) for value in values]

    def _path(self, value: bytes) -> str:
        return block_path(self._namespace, value)
