"""V2's sampler: parameters in stable rows on the device, one stage per feature, launched only when asked.

Three verbs: `add_request` notes what a request asks for, `apply_staged_writes` sends it to the device before
a step, `sample` draws. The base draw (temperature, greedy, Gumbel-max) can be captured in a graph; the other
stages (`stages.STAGES`) run when a scheduled row asks. `dodona.runners.sampling.reference` says what each
stage means.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dodona.kernels.sampling.acceptance import count_kept_tokens
from dodona.runners.device.sampling.base_draw import BaseDraw
from dodona.runners.device.sampling.logprob_values import SampledLogprobs
from dodona.runners.device.sampling.stage import Draw, SamplerRows, SamplingBatch, Stage, VerifiedDrafts
from dodona.runners.device.sampling.stages import STAGES
from dodona.runners.interface import NewRequest
from dodona.runners.sampling.reference import NO_TOKEN, lost_rows


@dataclass(frozen=True, slots=True, eq=False)
class SampledTokens:
    """Tokens of a step."""

    token_ids: Tensor
    """[n] int32; or, where a step of fixed form verified drafts, [n, 2] with `num_kept` beside each."""
    logprobs: SampledLogprobs | None = None
    """None where no row asks."""
    num_kept: Tensor | None = None
    """[n] int32, see `Draw.num_kept`."""


class DeviceSampler:
    """Samples for requests that live in stable rows.

    Args:
        max_num_seqs: number of state rows.
        vocab_size: width of the logits.
        token_ids: [max_num_seqs, max_model_len] int32 on the device: the token history, which the runner
            keeps.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, token_ids: Tensor) -> None:
        owners: tuple[type[BaseDraw] | type[Stage], ...] = (BaseDraw, *STAGES)
        self._rows = SamplerRows(
            max_num_seqs=max_num_seqs,
            vocab_size=vocab_size,
            token_ids=token_ids,
            floats=[name for owner in owners for name in owner.floats],
            integers=[name for owner in owners for name in owner.integers],
        )
        self.base = BaseDraw(self._rows)
        """The draw without any other stage."""
        self._stages = [(1 << i, stage(self._rows)) for i, stage in enumerate(STAGES)]
        """Each with the bit that stands for it."""
        self._asked = [0] * max_num_seqs
        """Per state row, the bits of the stages that it asks for."""

    def add_request(self, request: NewRequest) -> None:
        """Take over a row for a new or resumed request; `apply_staged_writes` tells the device."""
        self._rows.add_request(request)
        self.base.add_request(request)
        asked = 0
        for bit, stage in self._stages:
            asks = stage.asks(request)
            stage.add_request(request, asks)
            asked |= bit * asks
        self._asked[request.row] = asked

    def apply_staged_writes(self) -> None:
        """Send the rows that changed to the device; before `sample` of a step with new requests."""
        self._rows.apply_staged_writes()
        for _, stage in self._stages:
            stage.apply_staged_writes()

    def asked_stages(self, rows: Sequence[int]) -> int:
        """All that these state rows ask for: bit i stands for `STAGES[i]`. 0 means that the base draw is all
        of `sample`."""
        return functools.reduce(operator.or_, map(self._asked.__getitem__, rows), 0)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledTokens:
        """Draw a token for each row of the batch, once more after each draft, and count what is kept.

        Args:
            logits: [n, vocab], the model's dtype; not modified.
            batch: the n rows.
        """
        if logits.shape != (len(batch.rows), self._rows.vocab_size):
            expected = f"[{len(batch.rows)} rows, {self._rows.vocab_size} tokens]"
            raise ValueError(f"logits must be {expected}; got shape {tuple(logits.shape)}")
        asked = self.asked_stages(batch.rows)
        stages = [stage for bit, stage in self._stages if asked & bit]
        draw = Draw(batch, logits, logits)
        for stage in stages:
            stage.before_draw(draw)
        token_ids = self.base.sample(
            draw.scores,
            idx_mapping=batch.idx_mapping,
            positions=batch.positions,
            cuts=draw.cuts,
            fallback=draw.fallback,
        )
        if any(stage.masks for stage in stages):  # rows that nothing masks have no fallback token
            token_ids.masked_fill_(lost_rows(logits), NO_TOKEN)
        if batch.drafts is not None:
            draw.num_kept = self.count_kept(token_ids, batch.idx_mapping, batch.positions, batch.drafts)
        for stage in stages:
            stage.after_draw(draw, token_ids)
        return SampledTokens(token_ids, draw.logprobs, draw.num_kept)

    def count_kept(
        self,
        token_ids: Tensor,
        idx_mapping: Tensor,
        positions: Tensor,
        drafts: VerifiedDrafts,
        out: Tensor | None = None,
    ) -> Tensor:
        """[n] int32: how many of the tokens drawn for each row are kept. It can be captured in a graph."""
        return count_kept_tokens(
            token_ids,
            idx_mapping=idx_mapping,
            positions=positions,
            offsets=drafts.offsets,
            history=self._rows.token_ids,
            max_offset=drafts.most,
            out=out,
        )
