"""Writes into a model's weights by the names of its checkpoint: whole tensors, or single elements.

Everything is checked before the first write, so that what is refused leaves the weights as they were. Writes
are in place: addresses do not change, and captured graphs see the new values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dodona.oracle.errors import did_you_mean
from dodona.runners.errors import InvalidRequestError

INDEX_TYPES = (torch.int64, torch.int32)


@dataclass(frozen=True, slots=True)
class _Write:
    """One checked change of one tensor."""

    view: torch.Tensor
    values: torch.Tensor
    indices: torch.Tensor | None
    """Flat indices of the elements that change; None: all."""

    def apply(self) -> None:
        values = self.values.to(device=self.view.device, dtype=self.view.dtype)
        if self.indices is None:
            self.view.copy_(values)
            return
        places = torch.unravel_index(self.indices.to(self.view.device), self.view.shape)
        self.view[places] = values


def load_tensors(
    views: Mapping[str, torch.Tensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    tied: Mapping[str, str],
    quantized: Collection[str] = (),
) -> None:
    """Overwrite whole tensors; those that are not given stay.

    views: tensor name → the part of the model's weights that it fills, of any strides.
    tensors: (name, values of the view's shape); float values are cast to the view's type.
    tied: names that have no values of their own → the name whose values they share. A trainer's `state_dict`
        has both names; they may both be given where their values are equal.
    quantized: names of layers whose tensors can't be given.

    Raises InvalidRequestError that names the tensor: unknown, given twice, of another shape or type.
    """
    writes: dict[str, _Write] = {}
    repeated: dict[str, Any] = {}
    for item in tensors:
        name, tensor = _pair(item)
        if isinstance(name, str) and name in tied:
            repeated[name] = tensor
            continue
        view = _view(views, name, tied, quantized)
        if name in writes:
            raise InvalidRequestError(f"load_weights: tensor {name!r} is given twice")
        _check_values(name, tensor, view)
        if tensor.shape != view.shape:
            raise InvalidRequestError(
                f"load_weights: tensor {name!r} has shape {list(tensor.shape)}, "
                f"and the model's is {list(view.shape)}"
            )
        writes[name] = _Write(view, tensor, None)
    for name, tensor in repeated.items():
        first = writes.get(tied[name])
        if first is None or not _equal(first.values, tensor):
            raise _tied_error(name, tied)
    _apply(writes)


def apply_sparse_patches(
    views: Mapping[str, torch.Tensor],
    patches: Mapping[str, Any],
    *,
    tied: Mapping[str, str],
    quantized: Collection[str] = (),
) -> None:
    """Overwrite single elements: {tensor name: (flat indices, values)}.

    Flat indices count the elements of the checkpoint's tensor in row-major order: [n] int64 or int32, all
    different. Values: [n], of a float type where the weights have one (then cast), else of the same type.
    `views`, `tied` and `quantized` are as for `load_tensors`, but a tied name is always refused.

    Raises InvalidRequestError that names the tensor and what is wrong with its name, index, shape or type.
    """
    if not isinstance(patches, Mapping):
        raise InvalidRequestError(
            f"apply_sparse_weight_patches: expected {{name: (indices, values)}}, got {type(patches).__name__}"
        )
    writes = {
        name: _patch(name, patch, _view(views, name, tied, quantized)) for name, patch in patches.items()
    }
    _apply(writes)


def _apply(writes: Mapping[str, _Write]) -> None:
    with torch.no_grad():
        for write in writes.values():
            write.apply()


def _pair(item: Any) -> tuple[str, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InvalidRequestError(f"load_weights: expected pairs of name and tensor, got {item!r:.80}")
    return item[0], item[1]


def _equal(one: torch.Tensor, other: Any) -> bool:
    """Whether two tensors have the same values, wherever they are."""
    return isinstance(other, torch.Tensor) and torch.equal(one, other.to(one.device))


def _tied_error(name: str, tied: Mapping[str, str]) -> InvalidRequestError:
    return InvalidRequestError(f"tensor {name!r} is tied to {tied[name]!r}; give that one")


def _view(
    views: Mapping[str, torch.Tensor], name: Any, tied: Mapping[str, str], quantized: Collection[str]
) -> torch.Tensor:
    if isinstance(name, str) and name in tied:
        raise _tied_error(name, tied)
    if isinstance(name, str) and name not in views and name.rpartition(".")[0] in quantized:
        raise InvalidRequestError(
            f"tensor {name!r:.120} belongs to a quantized layer, whose tensors change by reload_weights alone"
        )
    if not isinstance(name, str) or name not in views:
        hint = did_you_mean(str(name), views)
        raise InvalidRequestError(f"the model has no tensor {name!r:.120}" + (f"; {hint}" if hint else ""))
    return views[name]


def _patch(name: str, patch: Any, view: torch.Tensor) -> _Write:
    if not isinstance(patch, (tuple, list)) or len(patch) != 2:
        raise InvalidRequestError(f"patch of {name!r}: expected (indices, values), got {patch!r:.80}")
    indices, values = patch
    if not isinstance(indices, torch.Tensor) or indices.dtype not in INDEX_TYPES or indices.ndim != 1:
        raise InvalidRequestError(
            f"patch of {name!r}: indices must be a tensor [n] of int64 or int32, got {_described(indices)}"
        )
    _check_values(name, values, view)
    if values.shape != indices.shape:
        raise InvalidRequestError(
            f"patch of {name!r}: {list(values.shape)} values for {list(indices.shape)} indices"
        )
    if len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= view.numel():
            raise InvalidRequestError(
                f"patch of {name!r}: index {low if low < 0 else high} is out of 0 .. {view.numel() - 1}, "
                f"the elements of shape {list(view.shape)}"
            )
        if (indices.sort().values.diff() == 0).any():
            raise InvalidRequestError(f"patch of {name!r}: an index is given twice")
    return _Write(view, values, indices.long())


def _check_values(name: str, values: Any, view: torch.Tensor) -> None:
    if not isinstance(values, torch.Tensor):
        raise InvalidRequestError(f"tensor {name!r}: expected a torch tensor, got {_described(values)}")
    both_float = values.is_floating_point() and view.is_floating_point()
    if values.dtype != view.dtype and not (both_float and view.dtype.itemsize > 1):
        raise InvalidRequestError(f"tensor {name!r}: values are {values.dtype}, and the model's {view.dtype}")


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"{value!r:.60}"
