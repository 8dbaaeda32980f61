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
        last = len(tokens) - 1
        # Where the last token occurred, in order; then the last two, and so on.
        ends, size = np.flatnonzero(tokens[:last] == tokens[last]), 1
        while size < min(self.largest, last):
            longer = ends[ends >= size]
            longer = longer[tokens[longer - size] == tokens[last - size]]
            if not len(longer):
                break
            ends, size = longer, size + 1
        if not len(ends) or size < self.smallest:
            return []
        after = ends + 1
        enough = after[after + self.num_speculative_tokens <= len(tokens)]
        begin = int(enough[-1] if len(enough) else after[0])
        found: list[int] = tokens[begin : begin + self.num_speculative_tokens].tolist()
        return found
