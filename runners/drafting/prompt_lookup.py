"""Prompt lookup: what followed the last tokens when they occurred before, in prompt or output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Looks for the longest of a row's last `smallest` .. `largest` tokens that occurred before."""

    num_speculative_tokens: int
    largest: int
    smallest: int

    def lookup(self, token_ids: Sequence[int]) -> list[int]:
        """At most `num_speculative_tokens` tokens that followed the longest earlier occurrence; of several,
        the latest that so many tokens follow, else the earliest."""
        tokens = np.asarray(token_ids, dtype=np.int64)
        count = len(tokens)
        for size in range(min(self.largest, count - 1), self.smallest - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], size)
            # Positions after the occurrences, in order.
            after = np.flatnonzero((windows == tokens[count - size :]).all(axis=1)) + size
            if len(after):
                enough = after[after + self.num_speculative_tokens <= count]
                begin = int(enough[-1] if len(enough) else after[0])
                found: list[int] = tokens[begin : begin + self.num_speculative_tokens].tolist()
                return found
        return []
