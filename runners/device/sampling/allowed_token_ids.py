"""`allowed_token_ids`: only these tokens may be drawn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dodona.kernels.sampling.masks import prepare_scores
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import RowTable
from dodona.runners.interface import NewRequest


class AllowedTokenIds(Stage):
    """Masks every other token, in the pass that makes the fp32 copy: it must be the first stage."""

    name: ClassVar[str] = "allowed-token-ids"
    masks: ClassVar[bool] = True
    integers: ClassVar[tuple[str, ...]] = ("is_restricted",)
    example: ClassVar[Example] = Example({"allowed_token_ids": (1, 5, 30)})

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows
        self._bits = RowTable(rows.max_num_seqs, np.int32, 0, rows.device)

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether the request restricts its tokens."""
        return request.sampling_params.allowed_token_ids is not None

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage the allowed ids as bits."""
        self._rows.integers.stage(request.row, is_restricted=asks)
        if asks:
            self._bits.stage(
                request.row, self._rows.pack_bits(request.sampling_params.allowed_token_ids or ())
            )

    def apply_staged_writes(self) -> None:
        """Send the bits."""
        self._bits.apply_staged_writes()

    def before_draw(self, draw: Draw) -> None:
        """Copy the logits to fp32, masked."""
        draw.scores = prepare_scores(
            draw.logits,
            idx_mapping=draw.batch.idx_mapping,
            allowed_bits=self._bits.values,
            is_restricted=self._rows.integers["is_restricted"],
        )
