"""A step while the scheduler puts it together, and when it is scheduled."""

from __future__ import annotations

from dataclasses import dataclass

from dodona.runners.engine.grammar import Grammar
from dodona.runners.engine.request import Request
from dodona.runners.interface import NewRequest, SchedulerOutput


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A step and the requests that its result belongs to: when it is read, a row may have gone to another
    request."""

    output: SchedulerOutput
    sampling: list[Request]
    """Requests whose rows sample, in batch order."""
    prompt_chunks: list[tuple[Request, int, int]]
    """(request, its row, position of its first token here) where prompt log-probabilities are due."""
    structured: list[tuple[int, Grammar]]
    """(row, grammar) for those of `sampling` that have one."""


class StepBatch:
    """A step's rows while it is put together: all that decode, those that verify drafts, then chunks within
    the budget that is left."""

    def __init__(self, decoding: list[Request], max_num_batched_tokens: int) -> None:
        self.num_decodes = len(decoding)
        self.budget = max_num_batched_tokens - self.num_decodes
        self.rows = [request.row for request in decoding]
        self.num_computed_tokens = [request.num_computed_tokens - 1 for request in decoding]
        self.num_tokens = [1] * self.num_decodes
        self.samples = [True] * self.num_decodes
        self.sampling = decoding
        self.prompt_chunks: list[tuple[Request, int, int]] = []

    def add_drafts(self, request: Request, num_drafts: int) -> None:
        """Verify the request's drafts, which are counted already."""
        self.rows.append(request.row)
        self.num_computed_tokens.append(request.num_computed_tokens - 1 - num_drafts)
        self.num_tokens.append(1 + num_drafts)
        self.samples.append(True)
        self.budget -= 1 + num_drafts
        self.sampling.append(request)

    def add_chunk(self, request: Request) -> None:
        """Compute the request's next tokens, as many as the budget allows; it samples after its last one."""
        start = request.num_computed_tokens
        end = min(request.num_prefill_tokens, start + self.budget)
        samples = end == request.num_prefill_tokens
        self.rows.append(request.row)
        self.num_computed_tokens.append(start)
        self.num_tokens.append(end - start)
        self.samples.append(samples)
        self.budget -= end - start
        if request.wants_prompt_logprobs and start < request.num_prompt_tokens - 1:
            self.prompt_chunks.append((request, request.row, start))
        request.num_computed_tokens = end
        if samples:
            self.sampling.append(request)
            request.num_tokens += 1


def new_request(request: Request) -> NewRequest:
    """What the runner must know of a request that starts."""
    return NewRequest(
        request_id=request.request_id,
        row=request.row,
        token_ids=tuple(request.token_ids),
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed_tokens=request.num_computed_tokens,
        block_ids=tuple(request.block_ids),
        sampling_params=request.params,
        seed=request.seed,
        stop_token_ids=tuple(sorted(request.stop_token_ids)),
        bad_words_token_ids=request.bad_words_token_ids,
        adapter=request.adapter,
        pooling=request.pooling,
    )
