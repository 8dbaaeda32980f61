"""`logit_bias`: numbers added to the logits of some tokens."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dodona.kernels.sampling.masks import NO_TOKEN, add_logit_bias
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import RowTable
from dodona.runners.interface import NewRequest


class LogitBias(Stage):
    """Adds the rows' biases."""

    name: ClassVar[str] = "logit-bias"
    example: ClassVar[Example] = Example({"logit_bias": {7: 5.0, 8: -5.0}})

    def __init__(self, rows: SamplerRows) -> None:
        self._ids = RowTable(rows.max_num_seqs, np.int32, NO_TOKEN, rows.device)
        self._values = RowTable(rows.max_num_seqs, np.float32, 0.0, rows.device)

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether there are any."""
        return bool(request.sampling_params.logit_bias)

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage the biases; none take out those of the row's former request."""
        bias = request.sampling_params.logit_bias or {}
        self._ids.stage(request.row, list(bias))
        self._values.stage(request.row, list(bias.values()))

    def apply_staged_writes(self) -> None:
        """Send the biases."""
        self._ids.apply_staged_writes()
        self._values.apply_staged_writes()

    def before_draw(self, draw: Draw) -> None:
        """Add the biases."""
        add_logit_bias(
            draw.editable_scores(),
            idx_mapping=draw.batch.idx_mapping,
            bias_ids=self._ids.values,
            bias_values=self._values.values,
        )
