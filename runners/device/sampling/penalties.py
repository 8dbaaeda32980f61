"""Penalties on tokens that occurred: repetition, frequency and presence."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from dodona.kernels.sampling.penalties import (
    DraftsBefore,
    apply_penalties,
    count_kept_tokens,
    count_tokens,
)
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import CountTable, RowTable
from dodona.runners.interface import NewRequest
from dodona.runners.sampling.reference import repetition_factor


class Penalties(Stage):
    """Keeps the tokens of prompts as bits and the counts of generated tokens, and penalises by both."""

    name: ClassVar[str] = "penalties"
    floats: ClassVar[tuple[str, ...]] = ("repetition", "frequency", "presence")
    integers: ClassVar[tuple[str, ...]] = ("is_penalized",)
    example: ClassVar[Example] = Example(
        {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": 0.1}
    )

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows
        self._prompt_bits = RowTable(rows.max_num_seqs, np.int32, 0, rows.device)
        self._output_counts = CountTable(rows.max_num_seqs, rows.vocab_size, rows.max_model_len, rows.device)

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether any penalty is on."""
        return request.sampling_params.has_penalties

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage the penalties, and the tokens that the row has."""
        row, params = request.row, request.sampling_params
        self._rows.floats.stage(
            row,
            repetition=repetition_factor(params),
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
        )
        self._rows.integers.stage(row, is_penalized=asks)
        if asks:
            prompt_len = request.num_prompt_tokens
            self._prompt_bits.stage(row, self._rows.pack_bits(request.token_ids[:prompt_len]))
            self._output_counts.stage(row, request.token_ids[prompt_len:])

    def apply_staged_writes(self) -> None:
        """Send bits and counts."""
        self._prompt_bits.apply_staged_writes()
        self._output_counts.apply_staged_writes()

    def before_draw(self, draw: Draw) -> None:
        """Penalise the scores; drafts count as output of the tokens after them."""
        batch = draw.batch
        drafts = None
        if batch.drafts is not None:
            drafts = DraftsBefore(batch.drafts.offsets, batch.positions, self._rows.token_ids)
        apply_penalties(
            draw.editable_scores(),
            idx_mapping=draw.batch.idx_mapping,
            is_penalized=self._rows.integers["is_penalized"],
            repetition=self._rows.floats["repetition"],
            frequency=self._rows.floats["frequency"],
            presence=self._rows.floats["presence"],
            prompt_bits=self._prompt_bits.values,
            output_counts=self._output_counts.values,
            drafts=drafts,
        )

    def after_draw(self, draw: Draw, token_ids: Tensor) -> None:
        """Count the tokens drawn, as far as they are kept."""
        if draw.batch.drafts is not None and draw.num_kept is not None:
            count_kept_tokens(
                self._output_counts.values,
                idx_mapping=draw.batch.idx_mapping,
                token_ids=token_ids,
                num_kept=draw.num_kept,
                is_penalized=self._rows.integers["is_penalized"],
                max_offset=draw.batch.drafts.most,
            )
            return
        count_tokens(
            self._output_counts.values,
            idx_mapping=draw.batch.idx_mapping,
            token_ids=token_ids,
            is_penalized=self._rows.integers["is_penalized"],
        )
