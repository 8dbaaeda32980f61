"""The names, types and shapes of a model directory's tensors, from the headers of its safetensors files.

No tensor is read: of each file the header, and its size. What the safetensors library would refuse to open is
refused here by the same definition: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import parse_json, read_prefix
from dodona.oracle.models.weight_files import weight_files
from dodona.oracle.printable import short

MAX_HEADER_BYTES: Final = 100_000_000
"""Largest header that the safetensors library reads."""

BITS: Final = MappingProxyType(
    {
        "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
        "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    }
)  # fmt: skip
"""Bits of an element, by the type's name in a header."""

FLOATS: Final = frozenset({"F32", "F16", "BF16", "F64"})
"""Types that are cast to the one that is computed in."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a header describes it."""

    dtype: str
    """A key of BITS."""
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """The product of its sizes."""
        return math.prod(self.shape)


def stored_tensors(directory: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of a model directory by name.

    Raises ConfigError that names the file which is missing, cut off or damaged.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        found |= file_tensors(file)
    return found


def file_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of one safetensors file. Raises ConfigError."""
    try:
        size = os.stat(file).st_size
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from None
    prefix = read_prefix(file, limit=7)
    if len(prefix) < 8:
        raise _damaged(file, "it has no header")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise _damaged(file, f"a header of {length} bytes in a file of {size} bytes")
    raw = read_prefix(file, limit=7 + length)[8:]
    try:
        header = parse_json(raw.decode("utf-8"), where=str(file))
    except (UnicodeDecodeError, ConfigError):
        raise _damaged(file, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    places = {name: _place(file, name, item) for name, item in header.items() if name != "__metadata__"}
    end = 0
    for name, (begin, finish, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if begin != end:
            raise _damaged(file, f"tensor {short(name)} is at byte {begin}, and the one before ends at {end}")
        end = finish
    if 8 + length + end != size:
        raise _damaged(file, f"its header describes {8 + length + end} bytes, and it has {size}")
    return {name: tensor for name, (_, _, tensor) in places.items()}


def _place(file: Path, name: str, item: Any) -> tuple[int, int, StoredTensor]:
    """First byte, byte after the last, and the tensor."""
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(file, f"tensor {short(name)} has the unknown type {short(dtype)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"tensor {short(name)} has no shape and place")
    elements = 1
    for size in shape:
        elements *= size
        if elements >= 1 << 64:  # a shape of many sizes would take hours to multiply
            raise _damaged(file, f"tensor {short(name)} of shape {shape[:8]} has too many elements")
    if 8 * (offsets[1] - offsets[0]) != elements * BITS[dtype]:
        raise _damaged(file, f"tensor {short(name)} of shape {shape[:8]} has {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1], StoredTensor(dtype, tuple(shape))


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _damaged(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file}: cannot be read as safetensors: {why}; fetch the model again")
