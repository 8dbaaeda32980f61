"""Per-row sampling state on the device: written on the host at any time, copied once a step, only what
changed.

A *stage* keeps its tables here; `stage` puts a row's new value aside, `apply_staged_writes` sends all of them
in one copy per table. Tables are made on first use and grow with what rows need, so a feature that nobody
asks for takes no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def upload(array: Array, device: torch.device) -> Tensor:
    """A host array on the device, without waiting for it there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device, copy=True)
    return tensor.pin_memory().to(device, non_blocking=True)


class ScalarTable:
    """Named numbers per row, of one dtype: `table["seed"]` is a contiguous [rows] tensor on the device."""

    def __init__(
        self, num_rows: int, columns: Sequence[str], dtype: npt.DTypeLike, device: torch.device
    ) -> None:
        self._columns = {name: i for i, name in enumerate(columns)}
        self._dtype = np.dtype(dtype)
        self._values = upload(np.zeros((len(columns), num_rows), dtype=dtype), device)
        self._staged: dict[int, list[float]] = {}

    def __getitem__(self, column: str) -> Tensor:
        return self._values[self._columns[column]]

    def stage(self, row: int, **values: float) -> None:
        """Set some of a row's numbers; the first call since the last writes must be followed by others until
        all of them are set."""
        numbers = self._staged.get(row)
        if numbers is None:
            numbers = self._staged[row] = [0] * len(self._columns)
        for name, value in values.items():
            numbers[self._columns[name]] = value

    def apply_staged_writes(self) -> None:
        """Send what was staged to the device."""
        if not self._staged:
            return
        device = self._values.device
        rows = upload(np.fromiter(self._staged, dtype=np.int64), device)
        values = upload(np.array(list(self._staged.values()), dtype=self._dtype).T, device)
        self._values.index_copy_(1, rows, values)
        self._staged.clear()


class RowTable:
    """A list of numbers per row: [rows, width], unused places filled; `width` grows to the longest list."""

    def __init__(self, num_rows: int, dtype: npt.DTypeLike, fill: float, device: torch.device) -> None:
        self._num_rows = num_rows
        self._dtype = np.dtype(dtype)
        self._fill = fill
        self._device = device
        self._values: Tensor | None = None
        self._staged: dict[int, Sequence[float] | Array] = {}
        self._filled: set[int] = set()

    @property
    def values(self) -> Tensor:
        """[rows, width] on the device. A row's list must have been applied before."""
        assert self._values is not None, "no row has asked for this table yet"
        return self._values

    def stage(self, row: int, values: Sequence[float] | Array) -> None:
        """Set a row's list. An empty one costs nothing where the row has none."""
        if len(values):
            self._filled.add(row)
        elif row in self._filled:
            self._filled.remove(row)
        else:
            return
        self._staged[row] = values

    def apply_staged_writes(self) -> None:
        """Send what was staged to the device."""
        if not self._staged:
            return
        table = self._table_of(max(1, *map(len, self._staged.values())))
        values = np.full((len(self._staged), table.shape[1]), self._fill, dtype=self._dtype)
        for staged, row_values in zip(values, self._staged.values(), strict=True):
            staged[: len(row_values)] = row_values
        rows = upload(np.fromiter(self._staged, dtype=np.int64), self._device)
        table.index_copy_(0, rows, upload(values, self._device))
        self._staged.clear()

    def _table_of(self, width: int) -> Tensor:
        """The table, at least this wide."""
        old = self._values
        if old is not None and old.shape[1] >= width:
            return old
        if old is not None:
            # Rows that grow one by one must not copy the table each time.
            width = max(width, 2 * old.shape[1])
        dtype = torch.from_numpy(np.empty(0, dtype=self._dtype)).dtype
        self._values = torch.full((self._num_rows, width), self._fill, dtype=dtype, device=self._device)
        if old is not None:
            self._values[:, : old.shape[1]] = old
        return self._values


class CountTable:
    """Counts per row and token: [rows, vocab], int16 where counts stay below 32768; made on first use."""

    def __init__(self, num_rows: int, vocab_size: int, max_count: int, device: torch.device) -> None:
        self._shape = (num_rows, vocab_size)
        self._dtype = torch.int16 if max_count < 2**15 else torch.int32
        self._device = device
        self._values: Tensor | None = None
        self._staged: dict[int, Array] = {}

    @property
    def values(self) -> Tensor:
        """[rows, vocab] on the device. A row's tokens must have been applied before."""
        assert self._values is not None, "no row has asked for counts yet"
        return self._values

    def stage(self, row: int, token_ids: Sequence[int]) -> None:
        """Make a row's counts those of `token_ids`."""
        self._staged[row] = np.asarray(token_ids, dtype=np.int64)

    def apply_staged_writes(self) -> None:
        """Send what was staged to the device."""
        if not self._staged:
            return
        if self._values is None:
            self._values = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        self._values.index_fill_(0, upload(np.fromiter(self._staged, dtype=np.int64), self._device), 0)
        places, counts = [], []
        for row, tokens in self._staged.items():
            ids, count = np.unique(tokens, return_counts=True)
            places.append(row * self._shape[1] + ids)
            counts.append(count)
        self._staged.clear()
        where, what = np.concatenate(places), np.concatenate(counts)
        if len(where):
            values = upload(what, self._device).to(self._dtype)
            self._values.view(-1).index_copy_(0, upload(where, self._device), values)
