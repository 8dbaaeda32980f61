"""The safetensors files of a model directory: model.safetensors, or those of its index.

Everything that opens weights asks here first, so that an index can't lead out of the directory, or to files
of another kind.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import check_regular, parse_json, read_text
from dodona.oracle.printable import short

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
SUFFIX: Final = ".safetensors"

MAX_INDEX_BYTES: Final = 64 << 20

MAX_INDEX_VALUES: Final = 300_000
"""Most values of an index: that of each tensor, and its metadata."""

MAX_FILES: Final = 4_096
"""Most files of one model."""

MAX_TENSORS: Final = 250_000
"""Most tensors of one model. Those of 60 layers of 384 experts with three tensors a weight are 207,360."""

MAX_TENSOR_NAME: Final = 1_024
"""Most characters of a tensor's name: patterns of quantization settings are matched with it."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Of the files of a directory's weights; see `stamp_of`."""


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights, sorted by name: model.safetensors, else those of the index, as
    transformers chooses.

    Raises ConfigError where there are neither, where the index is not one (see `read_index`), and where a
    file is missing or is no regular file.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if is_there(single):
        check_regular(single, single.stat())
        return (single,)
    if not _exists(index):
        raise ConfigError(
            f"{directory}: no {SINGLE_FILE} and no {INDEX_FILE}: weights are read from safetensors; "
            "convert the weights, or set load_format='dummy' for random ones"
        )
    files = [directory / name for name in sorted(set(read_index(index).values()))]
    lost = [file.name for file in files if not is_there(file)]
    if lost:
        raise ConfigError(f"{index}: names files that are not there: {_some(lost)}; fetch the model again")
    for file in files:
        check_regular(file, file.stat())
    return tuple(files)


def has_weight_files(directory: Path) -> bool:
    """Whether a directory has weights, be they whole or not."""
    return _exists(directory / SINGLE_FILE) or _exists(directory / INDEX_FILE)


def stamp_of(directory: Path) -> Stamp:
    """What changes when a file of the weights does: name, inode, time of change and size of each. Raises
    ConfigError where the directory can't be read."""
    found = []
    try:
        for entry in os.scandir(directory):
            if entry.name.endswith((SUFFIX, INDEX_FILE)):
                try:
                    status = entry.stat()
                except OSError:  # a link to nothing
                    status = entry.stat(follow_symlinks=False)
                found.append((entry.name, status.st_ino, status.st_mtime_ns, status.st_size))
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror or error}") from None
    return tuple(sorted(found))


def read_index(index: Path) -> dict[str, str]:
    """Tensor name → name of the file in the same directory that holds it.

    Raises ConfigError that names the index and the entry: `weight_map` must map names of tensors to bare
    names of .safetensors files. A file may be a link, as in a hub's cache; a name may not lead out of the
    directory.
    """
    data = read_index_json(index)
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{index}: expected an object with a `weight_map`; fetch the model again")
    names: set[str] = set()
    for tensor, name in found.items():
        if isinstance(name, str) and name in names:
            continue
        if not isinstance(name, str) or not _is_bare(name):
            raise ConfigError(
                f"{index}: weight_map: {tensor[:80]!r}: expected the bare name of a {SUFFIX} file, got "
                f"{str(name)[:80]!r}; fetch the model again"
            )
        names.add(name)
        if len(names) > MAX_FILES:
            raise ConfigError(f"{index}: weight_map: names more than {MAX_FILES} files; check the file")
    check_tensor_names(index, found)
    return found


def read_index_json(index: Path) -> Any:
    """What an index holds, be it right or wrong.

    Raises ConfigError for more than `MAX_TENSORS` tensors, which are counted before they are made, and for
    what is no JSON.
    """
    text = read_text(index, limit=MAX_INDEX_BYTES, expected="an index of weights")
    check_num_tensors(index, text.count(f'{SUFFIX}"'))
    return parse_json(text, where=str(index), most=MAX_INDEX_VALUES)


def check_num_tensors(file: Path, found: int) -> None:
    """Raise ConfigError for more than `MAX_TENSORS` tensors of one model."""
    if found > MAX_TENSORS:
        raise ConfigError(f"{file}: has {found} tensors, more than {MAX_TENSORS}; check the file")


def check_tensor_names(file: Path, names: Collection[str]) -> None:
    """Raise ConfigError for more than `MAX_TENSORS` tensors, and for a name of more than `MAX_TENSOR_NAME`
    characters."""
    check_num_tensors(file, len(names))
    longest = max(names, key=len, default="")
    if len(longest) > MAX_TENSOR_NAME:
        raise ConfigError(
            f"{file}: the name of a tensor has {len(longest)} characters, more than {MAX_TENSOR_NAME}: "
            f"{short(longest)}; fetch the model again"
        )


def is_there(file: Path) -> bool:
    """Whether something has this name; nothing has one that no file can have."""
    try:
        return file.exists()
    except OSError:
        return False


def _is_bare(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".") and not {"/", "\\", "\0"} & set(name)


def _exists(file: Path) -> bool:
    return is_there(file) or file.is_symlink()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(name[:80] for name in listed[:4]) + (", …" if len(listed) > 4 else "")
