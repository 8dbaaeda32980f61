"""Steps by requests that no user can have, run before the first real request: the largest ones, to size
memory, and small ones of every kind, so that no request waits for a compiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dodona.runners.device.sampling.stage import Example
from dodona.runners.device.sampling.stages import STAGES, example_params
from dodona.runners.interface import (
    RESERVED_REQUEST_ID_PREFIX,
    GrammarOutput,
    NewRequest,
    SchedulerOutput,
)
from dodona.runners.sampling.params import SamplingParams

PROMPT_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Chunks between which attention's tiles change."""

PLAIN = Example({})
"""The base draw alone."""

HEAVIEST = Example(
    {**example_params(grammar=True), "prompt_logprobs": 1},
    stop_token_ids=tuple(token for stage in STAGES for token in stage.example.stop_token_ids),
    bad_words_token_ids=tuple(word for stage in STAGES for word in stage.example.bad_words_token_ids),
)
"""All stages at once, and the log-probabilities of prompts."""

KINDS = (
    PLAIN,
    *(stage.example for stage in STAGES),
    *(Example({"logprobs": count}) for count in (0, 8, 20)),
    Example({"logprob_token_ids": (0,)}),
    HEAVIEST,
)
"""Requests that take different ways through the sampler."""


@dataclass(frozen=True, slots=True)
class RehearsalStep:
    """A step of rows that decode, then of prompts."""

    prompts: Sequence[int]
    """Length of each prompt's chunk, shortened to what a row has room for."""
    decodes: int = 0
    kinds: Sequence[Example] = (HEAVIEST,)
    """What the rows ask for, in turn."""
    context: int = 0
    """Tokens of each prompt that are computed already."""
    drafts: int = 0
    """Drafts that each row that decodes verifies."""
    token_ids: Sequence[int] = (0,)
    """What the rows consist of, over and over."""


def scheduler_output(step: RehearsalStep, *, max_model_len: int, block_size: int) -> SchedulerOutput:
    """The step as a scheduler would give it.

    All rows share KV block 0: only the sizes of what is computed matter.
    """
    lengths = [max(1, min(n, max_model_len - 1 - step.context)) for n in step.prompts]
    drafts = max(0, min(step.drafts, max_model_len - 3))
    computed = [1] * step.decodes + [step.context] * len(lengths)
    tokens = [2] * step.decodes + [step.context + n for n in lengths]
    rows = list(range(len(tokens)))
    new = [
        NewRequest(
            request_id=f"{RESERVED_REQUEST_ID_PREFIX}rehearsal_{row}",
            row=row,
            token_ids=tuple(step.token_ids[i % len(step.token_ids)] for i in range(n)),
            num_prompt_tokens=n,
            num_computed_tokens=computed[row],
            block_ids=(0,) * -(-(n + drafts) // block_size),
            sampling_params=SamplingParams(temperature=1.0, max_tokens=None, **kind.params),
            seed=0,
            stop_token_ids=kind.stop_token_ids or (0,),
            bad_words_token_ids=kind.bad_words_token_ids,
        )
        for row, n in zip(rows, tokens, strict=True)
        for kind in (step.kinds[row % len(step.kinds)],)
    ]
    return SchedulerOutput(
        step=0,
        freed_rows=(),
        new_requests=new,
        new_blocks=(),
        rows=rows,
        num_tokens=[1 + drafts] * step.decodes + lengths,
        num_computed_tokens=computed,
        samples=[True] * len(rows),
        num_decodes=0 if drafts else step.decodes,
        draft_token_ids=dict.fromkeys(rows[: step.decodes], (0,) * drafts) if drafts else {},
    )


def grammars_of(step: RehearsalStep, vocab_size: int) -> GrammarOutput:
    """Grammars of all rows that allow everything."""
    rows = [row for row in range(step.decodes) for _ in range(1 + step.drafts)]
    rows += range(step.decodes, step.decodes + len(step.prompts))
    return GrammarOutput(rows, np.full((len(rows), -(-vocab_size // 32)), -1, dtype=np.int32))


def largest_step(max_num_seqs: int, max_num_tokens: int) -> RehearsalStep:
    """As many tokens as a step may hold, over as many rows as may sample, with all stages."""
    count = min(max_num_seqs, max_num_tokens)
    length = max_num_tokens // count
    return RehearsalStep([length] * (count - 1) + [max_num_tokens - length * (count - 1)])


def largest_draft_step(max_num_seqs: int, max_num_tokens: int, drafts: int) -> RehearsalStep:
    """As many tokens of rows that verify `drafts` as a step may hold, with all stages."""
    return RehearsalStep((), decodes=max(1, min(max_num_seqs, max_num_tokens // (1 + drafts))), drafts=drafts)


def forward_steps(max_num_seqs: int, max_num_tokens: int) -> Iterator[RehearsalStep]:
    """Steps that take every way through the kernels of a mixed batch's forward pass: chunks of every size,
    with and without context, and batches of many sizes."""
    for length in PROMPT_LENGTHS:
        if length <= max_num_tokens:
            yield RehearsalStep([length], kinds=(PLAIN,))
            yield RehearsalStep([length], kinds=(PLAIN,), context=1)
    yield RehearsalStep([min(PROMPT_LENGTHS[-1], max_num_tokens)])
    most = min(max_num_seqs, max_num_tokens)
    for size in (1 << n for n in range(most.bit_length())):
        if size < most:
            yield RehearsalStep([1], decodes=size, kinds=(PLAIN,))
    if most > 1:
        yield RehearsalStep([1], decodes=most - 1)


def sampling_steps(max_num_seqs: int, max_num_tokens: int, drafts: int = 0) -> Iterator[RehearsalStep]:
    """Steps that take every way through the sampler, by one row, by all, and by some beside others; and again
    where rows verify `drafts`, if any. All are of fixed form but those with drafts beside a prompt: graphs
    serve them."""
    most = min(max_num_seqs, max_num_tokens)
    for kind in KINDS:
        yield RehearsalStep((), decodes=1, kinds=(kind,))
        if most > 1:
            yield RehearsalStep((), decodes=most, kinds=(kind,))
            yield RehearsalStep((), decodes=most, kinds=(PLAIN, kind))
    most //= 1 + drafts
    if drafts and most:
        for kind in KINDS:
            for decodes in sorted({1, most}):
                yield RehearsalStep((), decodes=decodes, kinds=(kind,), drafts=drafts)
            if most > 1:
                yield RehearsalStep([1], decodes=most - 1, kinds=(PLAIN, kind), drafts=drafts)
        for size in (1 << n for n in range(most.bit_length())):
            yield RehearsalStep((), decodes=size, kinds=(PLAIN,), drafts=drafts)
