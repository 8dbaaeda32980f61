"""Which kernels Triton makes ready while something runs: each is compiled, or read from Triton's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Compilation:
    """A variant of a kernel that this process had not used before."""

    kernel: str
    from_cache: bool


@contextmanager
def compilations() -> Iterator[list[Compilation]]:
    """The variants that this process uses for the first time inside, in order."""
    from triton import knobs

    found: list[Compilation] = []

    def note(*, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        found.append(Compilation(str(metadata.get("name")), cache_hit))

    before = knobs.compilation.listener
    knobs.compilation.listener = note
    try:
        yield found
    finally:
        knobs.compilation.listener = before


def summary(found: list[Compilation]) -> str:
    """How many, and which, in one line."""
    names = ", ".join(dict.fromkeys(each.kernel for each in found))
    compiled = sum(not each.from_cache for each in found)
    text = f"kernels first used after the start: {len(found)}, {compiled} of them compiled"
    return f"{text}: {names}" if names else text
