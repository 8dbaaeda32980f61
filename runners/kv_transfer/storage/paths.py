"""Names of the files of blocks: a whole block is one file, or its parts lie in a folder beside its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.regions import Region, cover

SUFFIX = ".safetensors"
PARTS = ".parts"
"""End of the name of a folder that holds a block's parts."""


def block_path(namespace: str, value: bytes) -> str:
    """Path of the file of the block with this hash, below the root."""
    name = value.hex()
    return f"{namespace}/{name[:2]}/{name}{SUFFIX}"


def region_path(path: str, region: Region, whole: Region) -> str:
    """Path of the file with a region of the block with this path: that one where it is the whole block."""
    return path if region == whole else f"{_folder(path)}/{region.name}{SUFFIX}"


def stored_regions(root: Path, path: str, layers: Sequence[LayerKVSpec]) -> Sequence[Region]:
    """The regions of the block with this path that are stored below the root; the whole one comes first.

    layers: the model's. Files that are no region of them don't count, nor does what can't be looked at.
    """
    found = []
    with suppress(OSError):
        found += [Region(0, len(layers))] if stat.S_ISREG(os.stat(root / path).st_mode) else []
    with suppress(OSError):
        names = [n for n in sorted(os.listdir(root / _folder(path))) if n.endswith(SUFFIX)]
        parsed = [Region.parse(name.removesuffix(SUFFIX)) for name in names]
        found += [region for region in parsed if region is not None and region.is_of(layers)]
    return found


def is_stored(root: Path, path: str, layers: Sequence[LayerKVSpec]) -> bool:
    """Whether all of the block with this path is stored, in one file or in parts."""
    return cover(Region(0, len(layers)), stored_regions(root, path, layers)) is not None


def _folder(path: str) -> str:
    return f"{path.removesuffix(SUFFIX)}{PARTS}"
