"""Drafters on the device that draw one token after the other: heads of the EAGLE family, and a draft
model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from dodona.runners.device.drafting import StepEnds
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.state import RequestState


class SequentialDrafter(ABC):
    """The loop over depths. A subclass computes `outputs`, one for each row.

    Drafts are drawn by the sampler's base stage: with the row's temperature, and the noise of its seed and
    position. Filters, penalties and grammars count when drafts are verified.
    """

    def __init__(
        self,
        state: RequestState,
        sampler: DeviceSampler,
        *,
        num_speculative_tokens: int,
        block_size: int,
        num_kv_heads: int,
    ) -> None:
        device = state.token_ids.device
        # Entries of a step, or of a pass over a row's drafts.
        most = max(len(state.rows), len(state.token_ids) * num_speculative_tokens)
        self._token_ids = state.token_ids
        self._block_table = state.block_table
        self._sampler = sampler
        self._num_speculative_tokens = num_speculative_tokens
        self._block_size = block_size
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._arrivals = torch.zeros(most * num_kv_heads, dtype=torch.int32, device=device)

    def propose(self, inputs: ForwardInputs, ends: StepEnds) -> Tensor:
        """See `DeviceDrafter.propose`."""
        inputs = replace(inputs, arrivals=self._arrivals)
        num_rows, count = ends.rows.shape[0], self._num_speculative_tokens
        drafts = torch.full((num_rows, count), -1, dtype=torch.int32, device=self._arrivals.device)
        last = inputs.positions[ends.last]
        outputs = self._compute(inputs, ends, last)
        for depth in range(count if num_rows else 0):
            if depth:
                outputs = self._continue(ends.rows, last + depth, drafts[:, depth - 1], outputs)
            drafts[:, depth] = self._sampler.base.sample(
                self._logits(outputs), idx_mapping=ends.rows, positions=last + 2 + depth
            )
        return drafts

    @abstractmethod
    def _compute(self, inputs: ForwardInputs, ends: StepEnds, last: Tensor) -> Tensor:
        """Compute what the step computed. Returns outputs [n, ...] from which each row's first draft is
        drawn.

        last: [n], position of each row's last token that is kept.
        """

    @abstractmethod
    def _continue(self, rows: Tensor, last: Tensor, token_ids: Tensor, outputs: Tensor) -> Tensor:
        """Compute one entry more of each row, for the drafts [n] that were drawn last. Returns outputs after
        it.

        last: [n], as in `_compute`, moved on by the drafts before.
        """

    @abstractmethod
    def _logits(self, outputs: Tensor) -> Tensor:
        """Outputs -> logits [n, vocab]."""

    def _entries(self, rows: Tensor, positions: Tensor, token_ids: Tensor) -> ForwardInputs:
        """Entries of one token: tokens [n] at positions [n] of state rows [n], -1 for padding."""
        count, live = rows.shape[0], rows >= 0
        blocks = self._block_table[rows, positions // self._block_size]
        return ForwardInputs(
            # What was drawn for padding is any number.
            input_ids=torch.where(live, token_ids.clamp(min=0), 0),
            positions=positions,
            slots=torch.where(live, blocks * self._block_size + positions % self._block_size, -1),
            rows=rows,
            query_start=self._starts[: count + 1],
            seq_lens=torch.where(live, positions + 1, 0),
            block_table=self._block_table,
            arrivals=self._arrivals,
            num_decodes=count,
            max_fresh_len=0,
            max_continued_len=0,
            has_drafts=True,
        )
