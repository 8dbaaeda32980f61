"""Counts of verified and accepted drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(slots=True)
class DraftStats:
    """How many drafts were verified and accepted, over all requests of an engine. vLLM's names."""

    num_drafts: int
    """How often a row's drafts were verified."""
    num_draft_tokens: int
    """Drafts that were verified."""
    num_accepted_tokens_per_pos: list[int]
    """[num_speculative_tokens]: how often the draft at each depth was accepted."""

    @classmethod
    def zero(cls, num_speculative_tokens: int) -> DraftStats:
        """Nothing counted yet. num_speculative_tokens: most drafts of a row in a step."""
        return cls(0, 0, [0] * num_speculative_tokens)

    @classmethod
    def total(cls, parts: Sequence[DraftStats]) -> DraftStats:
        """The sums over several engines, at least one, that draft alike."""
        by_depth = zip(*(part.num_accepted_tokens_per_pos for part in parts), strict=True)
        return cls(
            sum(part.num_drafts for part in parts),
            sum(part.num_draft_tokens for part in parts),
            [sum(counts) for counts in by_depth],
        )

    def copy(self) -> DraftStats:
        """The counts as they are now."""
        return replace(self, num_accepted_tokens_per_pos=list(self.num_accepted_tokens_per_pos))

    @property
    def num_accepted_tokens(self) -> int:
        """Drafts that were accepted."""
        return sum(self.num_accepted_tokens_per_pos)

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafts that was accepted; NaN before the first."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else float("nan")

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a row with drafts yields in a step, on average: the accepted drafts and one more; NaN
        before the first."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else float("nan")

    def add(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Count the drafts of one row in one step."""
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        for position in range(num_accepted_tokens):
            self.num_accepted_tokens_per_pos[position] += 1
