"""Drafters on the device that draw one token after the other: heads of the EAGLE family, and a draft
model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from dodona.kernels.state.draft_state import append_drafts, draft_places
from dodona.runners.device.drafting import StepEnds
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.state import RequestState

Places = tuple[Tensor, Tensor, Tensor]
"""See `draft_places`."""


class SequentialDrafter(ABC):
    """The loop over depths. A subclass computes `outputs`, one for each row.

    Drafts are drawn by the sampler's base stage: with the row's temperature, and the noise of its seed and
    position. Filters, penalties and grammars count when drafts are verified.

    `num_places`: how many entries a row has in the passes after the step's own. `vocabulary`: see
    `gumbel_sample`; the tokens of the logits.
    """

    def __init__(
        self,
        state: RequestState,
        sampler: DeviceSampler,
        *,
        num_speculative_tokens: int,
        num_places: int,
        block_size: int,
        num_kv_heads: int,
        vocabulary: Tensor | None = None,
    ) -> None:
        device = state.token_ids.device
        # Entries of a step, and of a pass over a row's drafts.
        most = len(state.rows) + len(state.token_ids) * num_speculative_tokens
        self._token_ids = state.token_ids
        self._block_table = state.block_table
        self._sampler = sampler
        self._vocabulary = vocabulary
        self._num_speculative_tokens = num_speculative_tokens
        self._num_places = num_places
        self._block_size = block_size
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._arrivals = torch.zeros(most * num_kv_heads, dtype=torch.int32, device=device)

    def propose(self, inputs: ForwardInputs, ends: StepEnds, out: Tensor | None = None) -> Tensor:
        """See `DeviceDrafter.propose`."""
        drafts = self._draft(replace(inputs, arrivals=self._arrivals), ends)
        append_drafts(
            drafts=drafts, rows=ends.rows, positions=ends.positions, token_ids=self._token_ids, out=out
        )
        return drafts if out is None else out

    def _draft(self, inputs: ForwardInputs, ends: StepEnds) -> Tensor:
        """[n, num_speculative_tokens] int32."""
        num_rows, count = len(ends.rows), self._num_speculative_tokens
        drafts = torch.empty((count, num_rows), dtype=torch.int32, device=self._arrivals.device)
        places = self._places(ends, 1, self._num_places)
        outputs = self._compute(inputs, ends, places)
        for depth in range(count if num_rows else 0):
            if depth:
                outputs = self._continue(ends, places, depth, drafts[depth - 1], outputs)
            self._draw(self._logits(outputs), ends.rows, ends.positions, ahead=2 + depth, out=drafts[depth])
        return drafts.t()

    def _draw(
        self, logits: Tensor, rows: Tensor, positions: Tensor, *, ahead: int = 0, out: Tensor | None = None
    ) -> Tensor:
        return self._sampler.base.sample(
            logits,
            idx_mapping=rows,
            positions=positions,
            vocabulary=self._vocabulary,
            ahead=ahead,
            as_drafts=True,
            out=out,
        )

    @abstractmethod
    def _compute(self, inputs: ForwardInputs, ends: StepEnds, places: Places) -> Tensor:
        """Compute what the step computed. Returns outputs [n, ...] from which each row's first draft is
        drawn.

        places: `num_places` that follow each row's last token.
        """

    @abstractmethod
    def _continue(
        self, ends: StepEnds, places: Places, ahead: int, drafts: Tensor, outputs: Tensor
    ) -> Tensor:
        """Compute one entry more of each row, for the drafts [n] that were drawn last. Returns outputs after
        it.

        ahead: how many drafts were drawn before.
        """

    @abstractmethod
    def _logits(self, outputs: Tensor) -> Tensor:
        """Outputs -> logits [n, vocab]."""

    def _places(self, ends: StepEnds, first: int, count: int) -> Places:
        return draft_places(
            rows=ends.rows,
            positions=ends.positions,
            first=first,
            count=count,
            block_table=self._block_table,
            block_size=self._block_size,
        )

    def _entries(self, ends: StepEnds, places: Places, depth: int, token_ids: Tensor) -> ForwardInputs:
        """Entries of one token: tokens [n], none below 0, at the places of a depth."""
        count = len(ends.rows)
        positions, slots, lengths = (one[depth] for one in places)
        return ForwardInputs(
            input_ids=token_ids,
            positions=positions,
            slots=slots,
            rows=ends.rows,
            query_start=self._starts[: count + 1],
            seq_lens=lengths,
            block_table=self._block_table,
            arrivals=self._arrivals,
            num_decodes=count,
            max_fresh_len=0,
            max_continued_len=0,
        )
