"""Suffix lookup: what most often followed the longest of the last tokens that occurred before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_OCCURRENCES = 1_024
"""Occurrences of the same tokens that are looked at, the latest: a text may repeat one token."""


@dataclass(frozen=True, slots=True)
class SuffixLookup:
    """Drafts from a row's own tokens, as many as its past makes likely (SuffixDecoding: Oliaro et al. 2024,
    arXiv:2411.04975). The names are those of vLLM's `suffix_decoding_*`."""

    num_speculative_tokens: int
    max_tree_depth: int
    """Most tokens that are looked for, and drafted, together."""
    max_spec_factor: float
    """Most drafts in multiples of the tokens that were found."""
    min_token_prob: float
    """Least share of the occurrences that went on as drafted."""

    def lookup(self, token_ids: Sequence[int]) -> list[int]:
        """Of the drafts after the row's last token, its last two, and so on, those that are expected to hold
        longest: the sum of the shares of occurrences that went on so far."""
        tokens = np.asarray(token_ids, dtype=np.int64)
        last = len(tokens) - 1
        ends = np.flatnonzero(tokens[:last] == tokens[last])
        best: tuple[float, list[int]] = (0.0, [])
        length = 1
        while len(ends):
            found = self._drafts(tokens, ends[-MAX_OCCURRENCES:], length)
            if found[0] > best[0]:
                best = found
            if length == min(self.max_tree_depth - 1, last):
                break
            ends = ends[ends >= length]
            ends = ends[tokens[ends - length] == tokens[last - length]]
            length += 1
        return best[1]

    def _drafts(
        self, tokens: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], length: int
    ) -> tuple[float, list[int]]:
        """(what is expected of them, drafts) after `length` tokens that occurred with these ends."""
        most = min(
            self.num_speculative_tokens, int(self.max_spec_factor * length), self.max_tree_depth - length
        )
        drafts: list[int] = []
        total, places = 0, ends
        while len(drafts) < most:
            places = places[places + 1 < len(tokens)] + 1
            if not len(places):
                break
            if len(places) == 1:  # what followed once is drafted at once
                begin = int(places[0])
                if 1 / len(ends) >= self.min_token_prob:
                    further: list[int] = tokens[begin : begin + most - len(drafts)].tolist()
                    drafts += further
                    total += len(further)
                break
            values, counts = np.unique(tokens[places], return_counts=True)
            token = int(values[counts.argmax()])
            places = places[tokens[places] == token]
            if len(places) / len(ends) < self.min_token_prob:
                break
            drafts.append(token)
            total += len(places)
        return total / len(ends), drafts
