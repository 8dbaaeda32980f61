"""`logprobs` and `logprob_token_ids`: log-probabilities of sampled tokens, from the raw logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from dodona.kernels.sampling.logprobs import given_logprobs, token_logprobs
from dodona.runners.device.sampling.logprob_values import SampledLogprobs
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import upload
from dodona.runners.interface import NewRequest


class Logprobs(Stage):
    """Computes the entries of the rows that ask, and of no others."""

    name: ClassVar[str] = "logprobs"
    example: ClassVar[Example] = Example({"logprobs": 3, "logprob_token_ids": (5, 31)})

    def __init__(self, rows: SamplerRows) -> None:
        self._asking: dict[int, tuple[int, Sequence[int]]] = {}
        """State row → how many of the most probable tokens, and which tokens by id."""

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether generated tokens come with log-probabilities."""
        return request.sampling_params.wants_logprobs

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Note what the row asks for."""
        params = request.sampling_params
        if asks:
            self._asking[request.row] = (params.logprobs or 0, params.logprob_token_ids or ())
        else:
            self._asking.pop(request.row, None)

    def after_draw(self, draw: Draw, token_ids: Tensor) -> None:
        """Compute the log-probabilities of the tokens drawn."""
        rows, logits = draw.batch.rows, draw.logits
        batch_rows = [i for i, row in enumerate(rows) if row in self._asking]
        state_rows = tuple(rows[i] for i in batch_rows)
        asked = [self._asking[row] for row in state_rows]
        top_counts = tuple(top_n for top_n, _ in asked)
        some = None if len(batch_rows) == len(rows) else upload(np.array(batch_rows), logits.device)
        top = token_logprobs(logits, token_ids, top_n=max(top_counts), rows=some)
        pairs = [(i, token) for i, (_, ids) in zip(batch_rows, asked, strict=True) for token in ids]
        if not pairs:
            draw.logprobs = SampledLogprobs(state_rows, top, top_counts)
            return
        # Apart, since a kernel is compiled anew for a pointer of another alignment.
        where, what = (upload(column, logits.device) for column in np.array(pairs, dtype=np.int32).T)
        given = given_logprobs(logits, rows=where, token_ids=what)
        given_counts = tuple(len(ids) for _, ids in asked)
        draw.logprobs = SampledLogprobs(state_rows, top, top_counts, given, given_counts)
