"""Drafts that the host knows by number: `DeviceDrafts`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch


class DeviceDrafts(Sequence[int]):
    """Drafts of one row that are in the state on the device. Their number is known; their ids are read when
    somebody looks at them, which waits for the device.

    Args:
        proposed: those of the step's rows, [n, k] int32; nothing overwrites it.
        place: which row's.
        count: how many, from the first on.
    """

    __slots__ = ("_count", "_place", "_proposed")

    def __init__(self, proposed: torch.Tensor, place: int, count: int) -> None:
        self._proposed = proposed
        self._place = place
        self._count = count

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
                return DeviceDrafts(self._proposed, self._place, stop)
        return self._read()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._read())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._read() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[list[int]], tuple[list[int]]]:
        return list, (self._read(),)

    def _read(self) -> list[int]:
        found: list[int] = self._proposed[self._place, : self._count].clamp(min=0).tolist()
        return found
