"""The sequences of a packed batch whose inner states lie in slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class SlotSequences:
    """Which of the packed tokens are a sequence's, and where its state is."""

    query_start: torch.Tensor
    """[sequences + 1] int32: where each sequence's tokens start; the last is the number of tokens."""
    slots: torch.Tensor
    """[sequences] int: slot of each sequence's state. Sequences that share one leave anything there."""
    begins: torch.Tensor
    """[sequences] bool: no token was before these; what the slot holds does not count."""
    longest: int
    """No sequence has more tokens."""
