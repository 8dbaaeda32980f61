"""Drafts that the host knows by number: `DeviceDrafts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload


class DeviceDrafts(Sequence[int]):
    """Drafts of one row that are in the state on the device, after the row's tokens there. Their number is
    known before the step that they come after was read; their ids are known only where `ids` is given.

    Args:
        count: how many, from the first on.
        ids: brings these ids, or more, when somebody looks at them; may wait for the device.
    """

    __slots__ = ("_count", "_ids")

    def __init__(self, count: int, ids: Callable[[], Sequence[int]] | None = None) -> None:
        self._count = count
        self._ids = ids

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            if (start, step) == (0, 1):
                return self if stop == self._count else DeviceDrafts(stop, self._ids)
        return self._read()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._read())

    def __eq__(self, other: object) -> bool:
        if self._ids is None:
            return isinstance(other, DeviceDrafts) and other._ids is None and len(other) == self._count
        return isinstance(other, Sequence) and self._read() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DeviceDrafts({self._count})"

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        """Ids that are known go along, as a list."""
        return (DeviceDrafts, (self._count,)) if self._ids is None else (list, (self._read(),))

    def _read(self) -> list[int]:
        if self._ids is None:
            raise RuntimeError(f"the ids of {self._count} drafts are on the device alone")
        return list(self._ids())[: self._count]
