"""The installed versions of the packages that runners are built on, read without importing them."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TESTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "transformers": "5.24.0",
        "torch": "2.13.0",
        "accelerate": "1.15.0",
        "bitsandbytes": "0.50.2",
        "torchao": "0.18.0",
        "ray": "2.60.0",
        "timm": "1.0.31",
        "llguidance": "1.9.1",
    }
)
"""Versions that tests ran with, for a machine that has everything."""

PACKAGES: Final = tuple(TESTED)
"""Packages whose presence or version decides what a runner can serve."""

Versions = tuple[tuple[str, str | None], ...]
"""Packages of `PACKAGES` by name, sorted, with their versions; None: not installed."""


@functools.cache
def installed_versions() -> Versions:
    """The version of each of `PACKAGES` in this process's environment."""
    return tuple((name, _version(name)) for name in sorted(PACKAGES))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except (ImportError, OSError, ValueError, KeyError):  # not there, or its metadata can't be read
        return None
