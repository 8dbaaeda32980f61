"""A grammar without a library, for tests of who asks a grammar what, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COUNT_TO = 7


class CountingGrammar:
    """Each token is one of three that follow from the one before; the end may come after every third, and
    must after `COUNT_TO`. It stands for `Grammar`, and for its matcher and vocabulary.

    break_at: how many tokens it takes before it fails, as a library does at one of its limits.
    """

    def __init__(self, vocab_size: int, eos: int, break_at: int | None = None) -> None:
        self.vocab_size = vocab_size
        self.eos = eos
        self.break_at = break_at
        self.tokens: list[int] = []
        self.error: str | None = None
        self.matcher = self
        self.vocabulary = self

    def allowed(self) -> set[int]:
        """What may come next."""
        if len(self.tokens) == COUNT_TO:
            return {self.eos}
        last = self.tokens[-1] if self.tokens else 5
        found = {1 + (last * 7 + i) % (self.vocab_size - 1) for i in (0, 1, 50)}
        return found | {self.eos} if self.tokens and len(self.tokens) % 3 == 0 else found

    def guess(self, token_ids: Sequence[int]) -> int:
        """One of the tokens that may follow these, the end aside."""
        return 1 + token_ids[-1] * 7 % (self.vocab_size - 1)

    def accept(self, token_id: int) -> bool:
        """As `Grammar.accept`."""
        if len(self.tokens) == self.break_at:
            self.error = "it broke"
            return False
        assert token_id in self.allowed(), "a token that the grammar forbids"
        self.tokens.append(token_id)
        return True

    def after(self, token_ids: Sequence[int]) -> CountingGrammar:
        """The same grammar with these tokens more."""
        copy = CountingGrammar(self.vocab_size, self.eos)
        copy.tokens = [*self.tokens, *token_ids]
        return copy

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """As `Grammar.num_allowed`."""
        place = self.after(())
        for count, token_id in enumerate(token_ids):
            if place.tokens[-1:] == [self.eos] or token_id not in place.allowed():
                return count
            place.tokens.append(token_id)
        return len(token_ids)

    def lookahead(self, token_ids: Sequence[int]) -> list[CountingGrammar]:
        """As `Grammar.lookahead`."""
        assert self.num_allowed(token_ids) == len(token_ids), "drafts that the grammar forbids"
        return [self.after(token_ids[:count]) for count in range(len(token_ids) + 1)]

    def bitmask(self, matchers: Sequence[CountingGrammar]) -> Any:
        """As `Vocabulary.bitmask`."""
        bits = np.zeros((len(matchers), -(-self.vocab_size // 32) * 32), dtype=np.uint8)
        for row, matcher in zip(bits, matchers, strict=True):
            row[list(matcher.allowed())] = 1
        return np.packbits(bits, axis=1, bitorder="little").view("<i4")
