"""Drafters that draw one token after the other: a draft model, and heads of the EAGLE family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dodona.runners.sampling import reference as sampling
from dodona.runners.v1.drafting.drafter import DraftContext


class Draft:
    """A row's drafts while they are drawn."""

    def __init__(self, context: DraftContext, most: int) -> None:
        self.context = context
        self.most = most
        """How many may be drawn."""
        self.token_ids: list[int] = []


def draw(logits: Tensor, drafts: Sequence[Draft]) -> None:
    """Append a token to each row's drafts, as the model would sample it from these logits [n, vocab]: with
    the row's parameters and the noise of its seed and position. A grammar is left out; what it forbids is cut
    off before the step. A row whose logits are NaN or all -inf gets no more drafts."""
    rows = [draft.context.state.ungoverned_row(draft.token_ids) for draft in drafts]
    for draft, token_id in zip(drafts, sampling.draw(logits, rows).tolist(), strict=True):
        if token_id == sampling.NO_TOKEN:
            draft.most = len(draft.token_ids)
        else:
            draft.token_ids.append(token_id)


class SequentialDrafter(ABC):
    """The loop over depths. A subclass computes `outputs`, one for each row that wants drafts."""

    def __init__(self, *, num_speculative_tokens: int, max_model_len: int) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self.max_model_len = max_model_len

    def propose(self, contexts: Sequence[DraftContext]) -> Mapping[int, Sequence[int]]:
        """Drafts by row, within `max_model_len`."""
        drafts = [Draft(c, most) for c in contexts if c.wants_drafts and (most := self._most(c)) > 0]
        with torch.inference_mode():
            self._draw_all(contexts, drafts)
        return {draft.context.row: draft.token_ids for draft in drafts if draft.token_ids}

    def _draw_all(self, contexts: Sequence[DraftContext], drafts: Sequence[Draft]) -> None:
        outputs = self._compute(contexts, drafts)
        for depth in range(1, self.num_speculative_tokens + 1):
            if not drafts:
                return
            draw(self._logits(outputs), drafts)
            going = [i for i, draft in enumerate(drafts) if draft.most > depth]
            drafts = [drafts[i] for i in going]
            if drafts:
                outputs = self._continue(drafts, outputs[going], depth)

    def _most(self, context: DraftContext) -> int:
        """Drafts that may all be accepted, with one token after them."""
        return min(self.num_speculative_tokens, self.max_model_len - context.end - 2)

    @abstractmethod
    def _compute(self, contexts: Sequence[DraftContext], drafts: Sequence[Draft]) -> Tensor:
        """Compute what the step computed. Returns outputs [len(drafts), ...] at the last token of each row
        that drafts."""

    @abstractmethod
    def _continue(self, drafts: Sequence[Draft], outputs: Tensor, depth: int) -> Tensor:
        """Compute each row's draft drawn last, its `depth`-th. Returns outputs after it."""

    @abstractmethod
    def _logits(self, outputs: Tensor) -> Tensor:
        """Outputs -> logits [n, vocab]."""
