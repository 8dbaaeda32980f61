"""The safetensors files of a model directory: model.safetensors, or those of its index.

Everything that opens weights asks here first, so that an index can't lead out of the directory, or to files
of another kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import check_regular, read_json

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
SUFFIX: Final = ".safetensors"

MAX_INDEX_BYTES: Final = 64 << 20


Stamp = tuple[tuple[str, int, int, int], ...]
"""Of the files of a directory's weights; see `stamp_of`."""


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights, sorted by name: model.safetensors, else those of the index, as
    transformers chooses.

    Raises ConfigError where there are neither, where the index is not one (see `read_index`), and where a
    file is missing or is no regular file.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.exists():
        check_regular(single, single.stat())
        return (single,)
    if not _exists(index):
        raise ConfigError(
            f"{directory}: no {SINGLE_FILE} and no {INDEX_FILE}: weights are read from safetensors; "
            "convert the weights, or set load_format='dummy' for random ones"
        )
    files = [directory / name for name in sorted(set(read_index(index).values()))]
    lost = [file.name for file in files if not file.exists()]
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
    data = read_json(index, limit=MAX_INDEX_BYTES, expected="an index of weights")
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{index}: expected an object with a `weight_map`; fetch the model again")
    for tensor, name in found.items():
        if not isinstance(name, str) or not _is_bare(name):
            raise ConfigError(
                f"{index}: weight_map: {tensor[:80]!r}: expected the bare name of a {SUFFIX} file, got "
                f"{str(name)[:80]!r}; fetch the model again"
            )
    return found


def _is_bare(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".") and not {"/", "\\", "\0"} & set(name)


def _exists(file: Path) -> bool:
    return file.exists() or file.is_symlink()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "")
