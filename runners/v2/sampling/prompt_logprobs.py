"""Log-probabilities of prompt tokens, from the hidden states that prefill computes anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dodona.kernels.sampling.logprobs import LogprobTensors, token_logprobs
from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.outputs import PromptLogprobRange

ROWS_AT_ONCE = 512
"""Positions whose logits exist at the same time: [512, 152k] in bf16 are 156 MB."""


class PromptLogprobs:
    """Which rows ask for log-probabilities of their prompt, and the computation of a step's share of them."""

    def __init__(self) -> None:
        self._asking: dict[int, tuple[int, int]] = {}
        """Row → (prompt tokens, top n)."""

    def add_request(self, request: NewRequest) -> None:
        """Remember what the request asks; a request that doesn't ask takes its row out."""
        top_n = request.sampling_params.prompt_logprobs
        if top_n is None:
            self._asking.pop(request.row, None)
        else:
            self._asking[request.row] = (request.num_prompt_tokens, top_n)

    def remove(self, rows: Sequence[int]) -> None:
        """Forget rows that were freed."""
        if self._asking:
            for row in rows:
                self._asking.pop(row, None)

    def plan(self, step: SchedulerOutput) -> Mapping[int, tuple[int, int, int, int]]:
        """Row → (packed index of its first position, that position, positions, top n), for rows with any."""
        if not self._asking:
            return {}
        plan, start = {}, 0
        for row, first, count in zip(step.rows, step.num_computed_tokens, step.num_tokens, strict=True):
            if row in self._asking:
                num_prompt_tokens, top_n = self._asking[row]
                positions = min(first + count, num_prompt_tokens - 1) - first
                if positions > 0:
                    plan[row] = (start, first, positions, top_n)
            start += count
        return plan


def compute_prompt_logprobs(
    plan: Mapping[int, tuple[int, int, int, int]],
    *,
    model: DenseModel,
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
) -> tuple[LogprobTensors | None, tuple[PromptLogprobRange, ...]]:
    """Log-probabilities of the tokens that follow the planned positions.

    Args:
        plan: see `PromptLogprobs.plan`.
        model: for its head.
        hidden: [tokens, hidden], the step's final hidden states.
        token_ids: [state rows, max_model_len], int32, on the device: the next tokens are prompt tokens, known
            there.

    Returns:
        (the log-probabilities of all rows, one after the other, each position with the largest top n of the
        step; where each row's are), or (None, ()) where the plan is empty.
    """
    if not plan:
        return None, ()
    widest = max(top_n for *_, top_n in plan.values())
    parts: list[LogprobTensors] = []
    ranges, total = [], 0
    for row, (start, first, positions, top_n) in plan.items():
        ranges.append(PromptLogprobRange(row, total, total + positions, top_n))
        total += positions
        for offset in range(0, positions, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, positions - offset)
            logits = model.logits(hidden[start + offset : start + offset + count])
            following = token_ids[row, first + offset + 1 : first + offset + 1 + count]
            parts.append(token_logprobs(logits, following, top_n=widest))
    return (
        LogprobTensors(
            torch.cat([part.token_ids for part in parts]),
            torch.cat([part.logprobs for part in parts]),
            torch.cat([part.ranks for part in parts]),
        ),
        tuple(ranges),
    )
