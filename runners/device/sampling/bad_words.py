"""`bad_words`: words that may not be generated."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dodona.kernels.sampling.masks import NO_TOKEN, mask_bad_words
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import RowTable
from dodona.runners.interface import NewRequest


class BadWords(Stage):
    """Masks the last token of each word whose other tokens are the last ones generated. Prompt tokens do not
    count towards a match."""

    name: ClassVar[str] = "bad-words"
    masks: ClassVar[bool] = True
    example: ClassVar[Example] = Example({}, bad_words_token_ids=((1,), (2, 3), (4, 5, 6)))

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows
        self._tokens = RowTable(rows.max_num_seqs, np.int32, NO_TOKEN, rows.device)
        """A row's words one after another."""
        self._ends = RowTable(rows.max_num_seqs, np.int32, NO_TOKEN, rows.device)
        """Where each word ends among these."""
        self._counts = [0] * rows.max_num_seqs

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether there are any."""
        return bool(request.bad_words_token_ids)

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage the words; none take out those of the row's former request."""
        row, words = request.row, request.bad_words_token_ids
        self._counts[row] = len(words)
        self._tokens.stage(row, [token for word in words for token in word])
        self._ends.stage(row, np.cumsum([len(word) for word in words], dtype=np.int32))

    def apply_staged_writes(self) -> None:
        """Send the words."""
        self._tokens.apply_staged_writes()
        self._ends.apply_staged_writes()

    def before_draw(self, draw: Draw) -> None:
        """Mask the words' last tokens."""
        mask_bad_words(
            draw.editable_scores(),
            idx_mapping=draw.batch.idx_mapping,
            positions=draw.batch.positions,
            prompt_lens=self._rows.prompt_lens,
            token_ids=self._rows.token_ids,
            word_tokens=self._tokens.values,
            word_ends=self._ends.values,
            max_words=max(self._counts[row] for row in draw.batch.rows),
        )
