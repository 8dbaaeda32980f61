"""The names, types and shapes of a model directory's tensors, from the headers of its safetensors files.

No tensor is read: of each file the header, and its size. What the safetensors library would refuse to open is
refused here by the same definition: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeGuard

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import MAX_VALUES, collector_paused, open_regular, parse_json
from dodona.oracle.models.weight_files import check_num_tensors, check_tensor_names, weight_files
from dodona.oracle.printable import short

MAX_HEADER_BYTES: Final = 64 << 20
"""Of the headers of all files of a model. That of a file of 400,000 tensors has about 55 MB."""

MAX_SIZES: Final = 64
"""Most dimensions of a tensor, as in torch."""

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


_PLACE: Final = b'"data_offsets"'
"""What each tensor of a header has, so that they are counted before they are made. It may be written with
escapes: who makes them counts again."""


class StoredTensor(NamedTuple):
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
    headers: list[tuple[Path, bytes, int]] = []
    left, count = MAX_HEADER_BYTES, 0
    for file in weight_files(directory):
        header, size = _header(file, left)
        left -= len(header)
        count += header.count(_PLACE)
        check_num_tensors(directory, count)
        headers.append((file, header, size))
    found: dict[str, StoredTensor] = {}
    for file, header, size in headers:
        found |= _tensors(file, header, size)
        check_num_tensors(directory, len(found))
    return found


def file_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of one safetensors file. Raises ConfigError."""
    return _tensors(file, *_header(file, MAX_HEADER_BYTES))


def check_header(file: Path, *, of: str = "the model") -> None:
    """Raise ConfigError for a file that is not there or no regular one, or whose header is cut off or larger
    than the library is to read. of: whose file it is."""
    raw, _ = _header(file, MAX_HEADER_BYTES, of)
    check_num_tensors(file, raw.count(_PLACE))
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise _damaged(file, f"its header has more than {MAX_VALUES} values", of)


def _header(file: Path, most: int, of: str = "the model") -> tuple[bytes, int]:
    """A file's header of at most `most` bytes, and how many bytes follow it."""
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _damaged(file, "it has no header", of)
        (length,) = struct.unpack("<Q", prefix)
        if 8 + length > size:
            raise _damaged(file, f"a header of {length} bytes in a file of {size} bytes", of)
        if length > most:
            raise _damaged(file, f"headers of more than {MAX_HEADER_BYTES} bytes", of)
        return stream.read(length), size - 8 - length


def _tensors(file: Path, raw: bytes, size: int) -> Mapping[str, StoredTensor]:
    """The tensors of a header that `size` bytes follow."""
    check_num_tensors(file, raw.count(_PLACE))
    try:
        header = parse_json(raw.decode("utf-8"), where=str(file))
    except (UnicodeDecodeError, ConfigError) as error:
        raise _damaged(
            file, f"its header is no JSON ({short(str(error).removeprefix(f'{file}:'))})"
        ) from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    check_tensor_names(file, header)
    kinds: dict[tuple[object, ...], tuple[StoredTensor, int]] = {}
    with collector_paused():
        found = {name: _tensor(file, name, item, kinds) for name, item in header.items()}
        places = sorted((*item["data_offsets"], name) for name, item in header.items())
    end = 0
    for begin, finish, name in places:
        if begin != end:
            raise _damaged(file, f"tensor {short(name)} is at byte {begin}, and the one before ends at {end}")
        end = finish
    if end != size:
        raise _damaged(
            file, f"its header describes {8 + len(raw) + end} bytes, and it has {8 + len(raw) + size}"
        )
    return found


def _tensor(
    file: Path, name: str, item: Any, kinds: dict[tuple[object, ...], tuple[StoredTensor, int]]
) -> StoredTensor:
    """The tensor that an entry of a header describes. kinds: by type and sizes, the tensors that were made
    and their bits; a model has few kinds."""
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(file, f"tensor {short(name)} has the unknown type {short(dtype)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"tensor {short(name)} has no shape of at most {MAX_SIZES} sizes, or no place")
    kind = (dtype, *shape)
    if kind not in kinds:
        elements = 1
        for size in shape:
            elements *= size
            if elements >= 1 << 64:
                raise _damaged(file, f"tensor {short(name)} of shape {shape[:8]} has too many elements")
        kinds[kind] = StoredTensor(dtype, tuple(shape)), elements * BITS[dtype]
    tensor, bits = kinds[kind]
    if 8 * (offsets[1] - offsets[0]) != bits:
        raise _damaged(file, f"tensor {short(name)} of shape {shape[:8]} has {offsets[1] - offsets[0]} bytes")
    return tensor


_INTEGERS: Final = frozenset([int])


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_SIZES:
        return False
    # for each of 10^5 tensors: a loop takes three times as long. `True` is no int here
    return not value or (_INTEGERS.issuperset(map(type, value)) and min(value) >= 0 and max(value) < 1 << 63)


def _damaged(file: Path, why: str, of: str = "the model") -> ConfigError:
    return ConfigError(f"{file}: cannot be read as safetensors: {why}; fetch {of} again")
