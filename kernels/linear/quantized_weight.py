"""The form in which quantized weights are computed with, and what that computation means, in torch.

A weight [rows, inner] is held as small numbers, and scales over groups of the inner dimension:

    value[n, k] = (data[n, k] - zeros[n, k // group_size]) * scales[n, k // group_size]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

FP8_MAX = 448.0
"""Largest number of E4M3."""
INT4_ZERO = 8
"""Zero point of 4-bit weights that have none of their own."""

WeightKind = Literal["int8", "fp8", "int4", "fp4"]

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of E2M1 by their four bits."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight [rows, inner]."""

    kind: WeightKind
    data: torch.Tensor
    """"int8": [rows, inner] int8. "fp8": [rows, inner] float8_e4m3fn. "int4" and "fp4": [rows, inner / 8]
    int32, see `pack_nibbles`."""
    scales: torch.Tensor
    """[rows, groups], float."""
    zeros: torch.Tensor | None = None
    """[rows, groups] int8, of "int8" and "int4"; None: 0 of "int8", `INT4_ZERO` of "int4"."""
    group_size: int | None = None
    """Inner elements that share a scale (the last group may be shorter); None where a row has one scale."""
    shared_rows: int = 1
    """Rows, counted from a multiple of this, that have the same scales: those of blocks."""

    @property
    def rows(self) -> int:
        """Rows: elements of the product."""
        return self.data.shape[0]

    @property
    def inner(self) -> int:
        """Inner elements: those of the input."""
        return self.data.shape[1] * (8 if self.kind in ("int4", "fp4") else 1)

    @property
    def size(self) -> int:
        """Inner elements per scale."""
        return self.group_size or self.inner

    def slice_rows(self, start: int, count: int) -> QuantizedWeight:
        """`count` rows from `start`; shares the memory."""
        rows = slice(start, start + count)
        zeros = None if self.zeros is None else self.zeros[rows]
        scales = self.scales[rows]
        return QuantizedWeight(self.kind, self.data[rows], scales, zeros, self.group_size, self.shared_rows)


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """[rows, inner / 8] int32 of values 0 to 15, [rows, inner]; `inner` is a multiple of 8.

    Of eight neighbours, those at even places are in the lower half of the word and those at odd places in the
    upper half: so a shift and a mask give a neighbouring pair, as two halves of a word.
    """
    rows, inner = values.shape
    if inner % 8:
        raise ValueError(f"values: expected rows of a multiple of 8 elements, got {inner}")
    eight = values.view(rows, inner // 8, 8).to(torch.int32)
    words = eight[..., 0].clone()
    for place in range(1, 8):
        words |= eight[..., place] << _shift(place)
    return words


def unpack_nibbles(words: torch.Tensor) -> torch.Tensor:
    """[rows, inner] uint8: the inverse of `pack_nibbles`."""
    places = [(words >> _shift(place)) & 15 for place in range(8)]
    return torch.stack(places, dim=-1).to(torch.uint8).flatten(1)


def _shift(place: int) -> int:
    return 4 * (place // 2) + 16 * (place % 2)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[rows, inner]: the values, computed in fp32 and rounded once to `dtype`."""
    if weight.kind == "int4":
        values = unpack_nibbles(weight.data).float()
    elif weight.kind == "fp4":
        table = torch.tensor(FP4_VALUES, device=weight.data.device)
        values = table[unpack_nibbles(weight.data).int()]
    else:
        values = weight.data.float()
    if weight.zeros is not None:
        values -= _per_element(weight.zeros.float(), weight)
    elif weight.kind == "int4":
        values -= INT4_ZERO
    return values.mul_(_per_element(weight.scales.float(), weight)).to(dtype)


def _per_element(groups: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    if weight.group_size is None:
        return groups
    return groups.repeat_interleave(weight.group_size, dim=1)[:, : weight.inner]


def round_rows(
    x: torch.Tensor,
    *,
    kind: Literal["int8", "fp8"],
    group_size: int | None = None,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    symmetric: bool = True,
) -> torch.Tensor:
    """`x` rounded to numbers that `kind` can hold, in fp32: quantized and dequantized again.

    As compressed-tensors defines it (`calculate_qparams`, `quantize`), with scales in fp32: x / scale is
    rounded to the nearest, ties to even, then clamped; a symmetric scale is the largest size over 127.5 or
    448.

    Args:
        x: [..., inner], float.
        kind: int8 (-128 to 127) or E4M3.
        group_size: inner elements that share a scale (the last group may be shorter); None: one scale a row.
        scale: [1] a stored scale for all of `x`; None: from `x`. `group_size` doesn't matter then.
        zero_point: [1] the stored zero point beside `scale`; None: 0.
        symmetric: whether there is no zero point; False: one per scale, from the smallest and largest of `x`
            (int8 only).
    """
    numbers, scales = quantize_rows(
        x, kind=kind, group_size=group_size, scale=scale, zero_point=zero_point, symmetric=symmetric
    )
    if scale is None and group_size is not None:
        scales = scales.repeat_interleave(group_size, dim=-1)[..., : x.shape[-1]]
    return numbers * scales


def quantize_rows(
    x: torch.Tensor,
    *,
    kind: Literal["int8", "fp8"],
    group_size: int | None = None,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    symmetric: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of `round_rows`, less their zero points: [..., inner] fp32, at most 255 in size if
    int8; and their scales: [..., groups] fp32, or the stored one, which may also be [..., 1], one a row."""
    wide = x.float()
    if scale is not None:
        zero = None if zero_point is None else zero_point.float()
        return _numbers(wide, kind, scale.float(), zero), scale.float()
    inner = x.shape[-1]
    size = group_size or inner
    groups = -(-inner // size)
    if groups * size != inner:
        wide = torch.nn.functional.pad(wide, (0, groups * size - inner))
    wide = wide.unflatten(-1, (groups, size))
    if symmetric:
        largest = wide.abs().amax(-1, keepdim=True)
        scales = largest / (127.5 if kind == "int8" else FP8_MAX)
        zeros = None
    else:
        low, high = wide.amin(-1, keepdim=True).clamp(max=0), wide.amax(-1, keepdim=True).clamp(min=0)
        scales = (high - low) / 255
        zeros = (-128 - low / scales.clamp(min=1e-30)).clamp(-128, 127).round()
    scales = torch.where(scales == 0, torch.finfo(torch.float32).eps, scales)
    return _numbers(wide, kind, scales, zeros).flatten(-2)[..., :inner], scales.squeeze(-1)


def _numbers(
    x: torch.Tensor, kind: Literal["int8", "fp8"], scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    steps = x / scales
    if kind == "fp8":
        return steps.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
    if zeros is None:
        return steps.round().clamp(-128, 127)
    return (steps + zeros).round().clamp(-128, 127) - zeros


def quantize_weight(
    weight: torch.Tensor,
    *,
    kind: Literal["int8", "fp8", "int4"],
    group_size: int | None = None,
    symmetric: bool = True,
) -> QuantizedWeight:
    """The nearest quantized weight, with scales in fp32 from the largest size (or the range) of each group.

    weight: [rows, inner], float; `inner` is a multiple of 8 for "int4". The last group may be shorter.
    """
    rows, inner = weight.shape
    size = group_size or inner
    count = -(-inner // size)
    wide = weight.float()
    if count * size != inner:
        # Zeros change no group's largest size, and every range has 0.
        wide = torch.nn.functional.pad(wide, (0, count * size - inner))
    groups = wide.view(rows, count, size)
    if kind == "fp8":
        scales = (groups.abs().amax(-1) / FP8_MAX).clamp(min=1e-12)
        data = (groups / scales[..., None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        return QuantizedWeight(kind, _whole(data, inner), scales, None, group_size)
    low, high = (-128, 127) if kind == "int8" else (0, 15)
    zeros: torch.Tensor | None = None
    if symmetric:
        scales = (groups.abs().amax(-1) / (127.5 if kind == "int8" else 7.5)).clamp(min=1e-12)
        offset: torch.Tensor | int = 0 if kind == "int8" else INT4_ZERO
    else:
        smallest, largest = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((largest - smallest) / (high - low)).clamp(min=1e-12)
        zeros = (low - smallest / scales).round().clamp(low, high)
        offset = zeros[..., None]
    steps = _whole((groups / scales[..., None]).round_().add_(offset).clamp_(low, high), inner)
    data = pack_nibbles(steps.to(torch.uint8)) if kind == "int4" else steps.to(torch.int8)
    return QuantizedWeight(kind, data, scales, None if zeros is None else zeros.to(torch.int8), group_size)


def _whole(groups: torch.Tensor, inner: int) -> torch.Tensor:
    """[rows, inner] of [rows, groups, size]."""
    return groups.flatten(1)[:, :inner].contiguous()
