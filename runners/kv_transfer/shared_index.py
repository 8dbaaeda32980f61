"""What the indices of blocks that engines share have in common: whose blocks they are, and what is read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path


class SharedIndex:
    """A `BlockIndex`'s part that knows of no block: the namespace of this engine's, and the loads."""

    def __init__(self, namespace: str, namespace_of: Callable[[Path | None], str] | None) -> None:
        """namespace: what blocks of the same model, weights and layout share. namespace_of: that of other
        weights, see `fingerprint`; None: not known."""
        self._namespace = namespace
        self._namespace_of = namespace_of
        self._loading: set[bytes] = set()

    def end_load(self, values: Sequence[bytes]) -> None:
        """The load of these blocks ended."""
        self._loading.difference_update(values)

    def fingerprint(self, weights: Path | None) -> str | None:
        """The namespace of blocks that are computed with the weights in a directory; None: random ones."""
        return None if self._namespace_of is None else self._namespace_of(weights)

    def clear(self, fingerprint: str | None = None) -> None:
        """Weights changed: go on with blocks of these. None: nobody else has them, as far as is known, so
        their blocks are not shared."""
        self._namespace = fingerprint or f"changed-{uuid.uuid4().hex}"
