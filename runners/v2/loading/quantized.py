"""Fills quantized projections: from the stored tensors of their layers, or with random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.oracle.models.quantized_shares import INNER
from dodona.runners.quantization.formats import LinearShape, TensorSpec, convert, stored_tensors
from dodona.runners.v2.models.projections import Parts, QuantizedPart
from dodona.runners.v2.models.shares import TensorShare

_READABLE = {
    torch.float32: ("F32", "F16", "BF16"),
    torch.float8_e4m3fn: ("F8_E4M3",),
    torch.int8: ("I8",),
    torch.int32: ("I32",),
    torch.int64: ("I64", "I32"),
}
"""Types of stored tensors that are read as one of a format's."""

_RANDOM_SIZE = 0.02
"""Standard deviation of random weights."""


def stored_specs(parts: Parts) -> dict[str, TensorSpec]:
    """What a checkpoint stores for the parts, by the tensors' names.

    Raises ConfigError where a layer's shape doesn't suit its format.
    """
    return {
        f"{name}.{tensor}": spec
        for name, part in parts.items()
        for tensor, spec in stored_tensors(part.scheme, part.shape).items()
    }


def readable_types(spec: TensorSpec) -> tuple[str, ...]:
    """Types, as safetensors names them, in which a tensor may be stored."""
    return _READABLE[spec.dtype]


Place = tuple[slice, ...]
"""Where a part of a tensor is in it, by dimension."""


def fill_parts(parts: Parts, read: Callable[[str, Place | None], torch.Tensor]) -> None:
    """Overwrite the parts in place. `read` gives what is at a place of a stored tensor, by the tensor's name;
    None: all of it.

    Raises ConfigError where stored indices are not as they must be.
    """
    for name, part in parts.items():
        shape, device = _shape_to_read(part), part.target.data.device
        tensors = {
            tensor: read(f"{name}.{tensor}", place).to(device)
            for tensor, place in _places(part, shape).items()
        }
        _copy(convert(part.scheme, shape, tensors).weight, part)


def _shape_to_read(part: QuantizedPart) -> LinearShape:
    """That of what is read of a layer: of its share, unless its numbers are still to be made, with scales
    that follow from the whole rows."""
    share, target = part.share, part.target
    if share is None or (share.dim == INNER and part.scheme.layout == "online"):
        return part.shape
    is_grouped = share.dim == INNER and target.group_size is not None
    first_group = share.index * target.scales.shape[1] if is_grouped else 0
    return replace(part.shape, rows=target.rows, inner=target.inner, first_group=first_group)


def _places(part: QuantizedPart, shape: LinearShape) -> dict[str, Place | None]:
    """By stored tensor, the place of what belongs to a layer of `shape`."""
    read, whole = stored_tensors(part.scheme, shape), stored_tensors(part.scheme, part.shape)
    return {name: _place(spec.shape, whole[name].shape, part.share) for name, spec in read.items()}


def _place(part: tuple[int, ...], whole: tuple[int, ...], share: TensorShare | None) -> Place | None:
    if share is None or part == whole:
        return None
    (dim,) = (dim for dim, size in enumerate(part) if size != whole[dim])
    return TensorShare(dim, share.parts, share.index).place(part)


def _copy(source: QuantizedWeight, part: QuantizedPart) -> None:
    target, share, data = part.target, part.share, source.data
    if share is not None and source.inner != target.inner:
        data = data[share.place(target.data.shape)]
    target.data.copy_(data)
    target.scales.copy_(source.scales)
    if target.zeros is not None and source.zeros is not None:
        target.zeros.copy_(source.zeros)


def fill_parts_randomly(parts: Parts, *, seed: int) -> None:
    """Random numbers, and scales that make weights of the size that models are initialised with."""
    for number, name in enumerate(sorted(parts)):
        _fill_randomly(parts[name], seed + number)


def _fill_randomly(part: QuantizedPart, seed: int) -> None:
    """Ranks have together the numbers that one rank would have."""
    target, share = part.target, part.share
    generator = torch.Generator(device=target.data.device).manual_seed(seed)
    shape = target.data.shape if share is None else share.whole(target.data.shape)
    data = torch.empty(shape, dtype=target.data.dtype, device=target.data.device)
    if target.kind == "fp8":
        data = torch.empty(shape, device=data.device).normal_(generator=generator)
        size = 1.0
    elif target.kind == "int8":
        data.random_(-127, 128, generator=generator)
        size = 73.3
    else:
        data.random_(-(2**31), 2**31 - 1, generator=generator)
        size = 4.6
    target.data.copy_(data if share is None else data[share.place(target.data.shape)])
    target.scales.fill_(_RANDOM_SIZE / size)
    if target.zeros is not None:
        target.zeros.fill_(8 if target.kind == "int4" else 0)
