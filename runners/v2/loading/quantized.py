"""Fills quantized projections: from the stored tensors of their layers, or with random numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.runners.quantization.formats import TensorSpec, convert, stored_tensors
from dodona.runners.v2.models.projections import Parts, QuantizedPart

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


def fill_parts(parts: Parts, read: Callable[[str], torch.Tensor]) -> None:
    """Overwrite the parts in place. `read` gives a stored tensor by name.

    Raises ConfigError where stored indices are not as they must be.
    """
    for name, part in parts.items():
        device = part.target.data.device
        tensors = {t: read(f"{name}.{t}").to(device) for t in stored_tensors(part.scheme, part.shape)}
        _copy(convert(part.scheme, part.shape, tensors).weight, part.target)


def _copy(source: QuantizedWeight, target: QuantizedWeight) -> None:
    target.data.copy_(source.data)
    target.scales.copy_(source.scales)
    if target.zeros is not None and source.zeros is not None:
        target.zeros.copy_(source.zeros)


def fill_parts_randomly(parts: Parts, *, seed: int) -> None:
    """Random numbers, and scales that make weights of the size that models are initialised with."""
    for number, name in enumerate(sorted(parts)):
        _fill_randomly(parts[name], seed + number)


def _fill_randomly(part: QuantizedPart, seed: int) -> None:
    target = part.target
    generator = torch.Generator(device=target.data.device).manual_seed(seed)
    if target.kind == "fp8":
        target.data.copy_(
            torch.empty(target.data.shape, device=target.data.device).normal_(generator=generator)
        )
        size = 1.0
    elif target.kind == "int8":
        target.data.random_(-127, 128, generator=generator)
        size = 73.3
    else:
        target.data.random_(-(2**31), 2**31 - 1, generator=generator)
        size = 4.6
    target.scales.fill_(_RANDOM_SIZE / size)
    if target.zeros is not None:
        target.zeros.fill_(8 if target.kind == "int4" else 0)
