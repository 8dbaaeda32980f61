"""Weights whose device memory is given back for a while."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class _Storage:
    storage: torch.UntypedStorage
    size: int
    """Bytes."""
    copy: torch.UntypedStorage | None
    """On the host; None: the content is lost."""


class SleepingWeights:
    """The memory of some tensors, taken from them until `wake`.

    The tensors, and all views of them, keep their identity. Their address may be another after `wake`, so
    graphs that were captured before are not valid any more.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], *, keep: bool) -> None:
        """
        keep: hold the content in host memory meanwhile; else it is lost. What is in host memory already is
        left where it is if it is to be kept.
        """
        self._tensors = list(tensors)
        found = {t.untyped_storage()._cdata: t.untyped_storage() for t in self._tensors}
        self._storages: list[_Storage] = []
        for storage in found.values():
            if keep and storage.device.type == "cpu":
                continue
            # A file that is mapped into memory has no size of its own, and the system takes its pages back.
            if not storage.resizable():
                continue
            copy = storage.cpu() if keep else None  # type: ignore[no-untyped-call]
            self._storages.append(_Storage(storage, storage.nbytes(), copy))
        for entry in self._storages:
            entry.storage.resize_(0)

    def wake(self) -> None:
        """Allocate the memory again. Content that was not kept is NaN (zero in integers) from here on, so
        that weights which nobody loads again can't pass for good ones."""
        lost = {entry.storage._cdata for entry in self._storages if entry.copy is None}
        for entry in self._storages:
            entry.storage.resize_(entry.size)
            if entry.copy is not None:
                entry.storage.copy_(entry.copy)
        with torch.no_grad():
            for tensor in self._tensors:
                if tensor.untyped_storage()._cdata in lost:
                    _spoil(tensor)


def _spoil(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    else:
        tensor.zero_()
