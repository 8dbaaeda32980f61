"""Log-probabilities of prompt tokens, from the hidden states that prefill computes anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dodona.kernels.sampling.logprobs import LogprobTensors, token_logprobs
from dodona.runners.device.model import StepModel
from dodona.runners.device.sampling.logprob_values import host_logprobs
from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.sampling.token_logprobs import TokenLogprobs

ROWS_AT_ONCE = 512
"""Positions whose logits exist at the same time: [512, 152k] in bf16 are 156 MB."""


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Prompt positions of one row in a step, whose next tokens' log-probabilities are asked for."""

    row: int
    start: int
    """Packed index of the first position in the step."""
    position: int
    """The first position in the sequence."""
    length: int
    top_n: int


@dataclass(frozen=True, slots=True, eq=False)
class PromptHidden:
    """What prompt log-probabilities are computed from, once the step's forward pass is launched."""

    chunks: Sequence[PromptChunk]
    """At least one."""
    hidden: torch.Tensor
    """[tokens, hidden]: the step's final hidden states."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """Log-probabilities of a step's prompt tokens, on the device or on the host."""

    chunks: Sequence[PromptChunk]
    tensors: LogprobTensors
    """One entry per position of all chunks, one chunk after the other, each with the largest top n of the
    step."""

    def by_row(self) -> dict[int, list[TokenLogprobs]]:
        """State row → its entries, in order. Waits for tensors on a device."""
        counts = [chunk.top_n for chunk in self.chunks for _ in range(chunk.length)]
        entries = iter(host_logprobs(self.tensors, counts))
        return {chunk.row: [next(entries) for _ in range(chunk.length)] for chunk in self.chunks}


class PromptLogprobRequests:
    """Which rows ask for log-probabilities of their prompt."""

    def __init__(self) -> None:
        self._asking: dict[int, tuple[int, int]] = {}
        """Row → (prompt tokens, top n)."""

    def add_request(self, request: NewRequest) -> None:
        """Note what the request asks for; a request that does not ask takes its row out."""
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

    def chunks(self, step: SchedulerOutput) -> Sequence[PromptChunk]:
        """The positions of a step whose hidden states are needed."""
        if not self._asking:
            return ()
        chunks, start = [], 0
        for row, first, count in zip(step.rows, step.num_computed_tokens, step.num_tokens, strict=True):
            if row in self._asking:
                num_prompt_tokens, top_n = self._asking[row]
                length = min(first + count, num_prompt_tokens - 1) - first
                if length > 0:
                    chunks.append(PromptChunk(row, start, first, length, top_n))
            start += count
        return chunks


def compute_prompt_logprobs(
    prompt: PromptHidden, *, model: StepModel, token_ids: torch.Tensor
) -> PromptLogprobs:
    """Log-probabilities of the tokens that follow the chunks' positions, on the device.

    Args:
        prompt: the step's hidden states, and which of them are asked for.
        model: for its head.
        token_ids: [state rows, max_model_len], int32, on the device: the next tokens are prompt tokens, known
            there.
    """
    widest = max(chunk.top_n for chunk in prompt.chunks)
    pieces: list[LogprobTensors] = []
    for chunk in prompt.chunks:
        for offset in range(0, chunk.length, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, chunk.length - offset)
            start, following = chunk.start + offset, chunk.position + offset + 1
            logits = model.logits(prompt.hidden[start : start + count])
            pieces.append(
                token_logprobs(logits, token_ids[chunk.row, following : following + count], top_n=widest)
            )
    return PromptLogprobs(
        prompt.chunks,
        LogprobTensors(
            torch.cat([piece.token_ids for piece in pieces]),
            torch.cat([piece.logprobs for piece in pieces]),
            torch.cat([piece.ranks for piece in pieces]),
        ),
    )
