"""`min_tokens`: no token that ends the request before this many were generated."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dodona.kernels.sampling.masks import NO_TOKEN, mask_stop_tokens
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import RowTable
from dodona.runners.interface import NewRequest


class MinTokens(Stage):
    """Masks the stop tokens of rows that have generated too few."""

    name: ClassVar[str] = "min-tokens"
    masks: ClassVar[bool] = True
    integers: ClassVar[tuple[str, ...]] = ("min_tokens",)
    example: ClassVar[Example] = Example({"min_tokens": 4}, stop_token_ids=(2, 3, 4))

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows
        self._stop_ids = RowTable(rows.max_num_seqs, np.int32, NO_TOKEN, rows.device)

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether there are stop tokens, and a number of tokens before them."""
        return request.sampling_params.min_tokens > 0 and bool(request.stop_token_ids)

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage the number, 0 for rows that do not ask, and the stop tokens."""
        wanted = min(request.sampling_params.min_tokens, self._rows.max_model_len) if asks else 0
        self._rows.integers.stage(request.row, min_tokens=wanted)
        if asks:
            self._stop_ids.stage(request.row, request.stop_token_ids)

    def apply_staged_writes(self) -> None:
        """Send the stop tokens."""
        self._stop_ids.apply_staged_writes()

    def before_draw(self, draw: Draw) -> None:
        """Mask the stop tokens."""
        mask_stop_tokens(
            draw.editable_scores(),
            idx_mapping=draw.batch.idx_mapping,
            positions=draw.batch.positions,
            prompt_lens=self._rows.prompt_lens,
            min_tokens=self._rows.integers["min_tokens"],
            stop_ids=self._stop_ids.values,
        )
