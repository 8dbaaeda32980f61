"""Which blocks are in the shared storage: those whose file is there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

SUFFIX = ".safetensors"


def block_path(namespace: str, value: bytes) -> str:
    """Path of the file of the block with this hash, below the root."""
    name = value.hex()
    return f"{namespace}/{name[:2]}/{name}{SUFFIX}"


class StorageIndex:
    """A `BlockIndex` of files. Blocks that another engine wrote are found as soon as they are there."""

    def __init__(
        self, namespace: str, exists: Callable[[str], bool], *, loads: bool = True, stores: bool = True
    ) -> None:
        """exists: whether there is a file with this path below the root. loads, stores: what this engine's
        role lets it do."""
        self._namespace = namespace
        self._exists = exists
        self._loads = loads
        self._stores = stores
        self._loading: set[bytes] = set()

    def find(self, value: bytes) -> bool | None:
        """Whether the block's file is there; None while another load reads it."""
        if value in self._loading:
            return None
        return self._loads and self._exists(self._path(value))

    def reserve(self, value: bytes) -> str | None:
        """The path of the block's file; None where it is there."""
        path = self._path(value)
        return path if self._stores and not self._exists(path) else None

    def begin_load(self, values: Sequence[bytes]) -> Sequence[str]:
        """The paths of these blocks' files."""
        self._loading.update(values)
        return [self._path(value) for value in values]

    def end_load(self, values: Sequence[bytes]) -> None:
        """The load of these blocks ended."""
        self._loading.difference_update(values)

    def clear(self) -> None:
        """Weights changed: nobody else has these, as far as is known, so their blocks are not shared."""
        self._namespace = f"changed-{uuid.uuid4().hex}"

    def _path(self, value: bytes) -> str:
        return block_path(self._namespace, value)
