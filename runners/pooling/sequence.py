"""`TokenSequence`: a prompt as a pooling model takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One prompt."""

    token_ids: Sequence[int]
    token_type_ids: Sequence[int] | None = None
    """Segment of each token, for models that tell two texts of a pair apart."""
