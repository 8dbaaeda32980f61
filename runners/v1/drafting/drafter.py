"""What a step asks of a drafter: `Drafter`, and the `DraftContext` of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dodona.runners.v1.batch_state import RequestState


@dataclass(frozen=True, slots=True)
class DraftContext:
    """A row after a step, with the tokens that the step yielded."""

    row: int
    state: RequestState
    packed: int
    """Index of the row's first token among the step's packed tokens."""
    start: int
    """Position of that token."""
    end: int
    """Position after the last token whose KV was computed in this step and is kept."""
    wants_drafts: bool
    """Whether drafts may follow the row's tokens: it sampled. Then it has a token at position `end`."""


class Drafter(Protocol):
    """Proposes tokens. What it proposes changes how many steps an output takes, never the output."""

    def propose(self, contexts: Sequence[DraftContext]) -> Mapping[int, Sequence[int]]:
        """Drafts by row, for rows that want some.

        contexts: all rows of the step, in batch order; also those that want no drafts, so that a drafter with
        a KV cache of its own may compute their tokens.
        """
