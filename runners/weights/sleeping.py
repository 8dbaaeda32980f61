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
        # Files that are mapped into memory can't shrink: their tensors let go of them.
        self._mapped = [
            (t, t.shape) for t in self._tensors if not keep and not t.untyped_storage().resizable()
        ]
        for tensor, _ in self._mapped:
            tensor.data = tensor.new_empty(0)
        found = {t.untyped_storage()._cdata: t.untyped_storage() for t in self._tensors}
        self._storages: list[_Storage] = []
        for storage in found.values():
            if keep and storage.device.type == "cpu":
                continue
            copy = storage.cpu() if keep else None  # type: ignore[no-untyped-call]
            self._storages.append(_Storage(storage, storage.nbytes(), copy))
        for entry in self._storages:
            entry.storage.resize_(0)

    def wake(self) -> None:
        """Allocate the memory again. Content that was not kept is NaN (zero in integers and floats of one
        byte) from here on, so that weights which nobody loads again can't pass for good ones."""
        for tensor, shape in self._mapped:
            tensor.data = tensor.new_empty(shape)
        lost = {entry.storage._cdata for entry in self._storages if entry.copy is None}
        lost |= {tensor.untyped_storage()._cdata for tensor, _ in self._mapped}
        for entry in self._storages:
            entry.storage.resize_(entry.size)
            if entry.copy is not None:
                entry.storage.copy_(entry.copy)
        with torch.no_grad():
            for tensor in self._tensors:
                if tensor.untyped_storage()._cdata in lost:
                    _spoil(tensor)


def is_spoilt(tensor: torch.Tensor) -> bool:
    """Whether content that was lost is not all replaced. Integers, and floats of one byte, never say so."""
    return _holds_nan(tensor) and bool(tensor.isnan().any())


def _holds_nan(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _spoil(tensor: torch.Tensor) -> None:
    if _holds_nan(tensor):
        tensor.fill_(float("nan"))
    else:
        tensor.view(torch.uint8).zero_()
