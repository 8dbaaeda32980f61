"""Steps that nobody asked for, run before the first request: the largest, to size memory, and small ones of
every kind, so that no kernel is compiled while somebody waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dodona.runners.interface import (
    RESERVED_REQUEST_ID_PREFIX,
    GrammarOutput,
    NewRequest,
    Runner,
    SchedulerOutput,
)
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.structured_outputs import StructuredOutputsParams

PROMPT_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Chunks between which attention's tiles change."""

PLAIN = SamplingParams(temperature=1.0, max_tokens=None)
_FILTERS = {"top_p": 0.9, "top_k": 50, "min_p": 0.01}
_EDITS = {"repetition_penalty": 1.1, "logit_bias": {0: 1.0}, "min_tokens": 1}

HEAVIEST = SamplingParams(
    temperature=1.0,
    **_FILTERS,
    **_EDITS,
    logprobs=1,
    logprob_token_ids=(0,),
    prompt_logprobs=1,
    max_tokens=None,
    structured_outputs=StructuredOutputsParams(regex="."),
)
"""Every stage that takes memory by the size of the vocabulary."""

KINDS = (
    PLAIN,
    SamplingParams(temperature=1.0, max_tokens=None, **_FILTERS),
    SamplingParams(temperature=1.0, max_tokens=None, **_EDITS),
    SamplingParams(temperature=1.0, max_tokens=None, allowed_token_ids=(0,)),
    *(SamplingParams(temperature=1.0, max_tokens=None, logprobs=n) for n in (0, 8, 20)),
    HEAVIEST,
)
"""Parameters that take different ways through the sampler."""


def run_step(
    runner: Runner,
    prompts: Sequence[int],
    *,
    max_model_len: int,
    vocab_size: int,
    block_size: int,
    decodes: int = 0,
    params: Sequence[SamplingParams] = (HEAVIEST,),
    context: int = 0,
) -> None:
    """A step of `decodes` rows with one token each, then prompts of these lengths (or as near as rows allow),
    after `context` tokens of each that are computed already.

    All rows share KV block 0: only the sizes of what is computed matter. `params` are given to the rows in
    turn. Returns when the step's result was read.
    """
    lengths = [max(1, min(n, max_model_len - 1 - context)) for n in prompts]
    computed = [1] * decodes + [context] * len(lengths)
    tokens = [2] * decodes + [context + n for n in lengths]
    rows = list(range(len(tokens)))
    new = [
        NewRequest(
            request_id=f"{RESERVED_REQUEST_ID_PREFIX}rehearsal_{row}",
            row=row,
            token_ids=(0,) * n,
            num_prompt_tokens=n,
            num_computed_tokens=computed[row],
            block_ids=(0,) * -(-n // block_size),
            sampling_params=params[row % len(params)],
            seed=0,
            stop_token_ids=(0,),
            bad_words_token_ids=((0, 0),) if params[row % len(params)].logit_bias else (),
        )
        for row, n in zip(rows, tokens, strict=True)
    ]
    runner.execute_model(
        SchedulerOutput(
            step=0,
            freed_rows=(),
            new_requests=new,
            new_blocks=(),
            rows=rows,
            num_tokens=[1] * decodes + lengths,
            num_computed_tokens=computed,
            samples=[True] * len(rows),
            num_decodes=decodes,
        )
    )
    everything = np.full((len(rows), -(-vocab_size // 32)), -1, dtype=np.int32)
    runner.sample_tokens(GrammarOutput(rows, everything)).result()


def largest_prompts(max_num_seqs: int, max_num_tokens: int) -> list[int]:
    """As many tokens as a step may hold, over as many rows as may sample."""
    count = min(max_num_seqs, max_num_tokens)
    length = max_num_tokens // count
    return [length] * (count - 1) + [max_num_tokens - length * (count - 1)]


def small_steps(
    max_num_seqs: int, max_num_tokens: int
) -> Iterator[tuple[int, Sequence[int], Sequence[SamplingParams], int]]:
    """(decodes, prompt lengths, parameters, context) of steps that together take every way through the
    kernels.

    Chunks of every size, with and without context; mixed batches of many sizes; and every way through the
    sampler, by one row, by all, and by some beside others.
    """
    for length in PROMPT_LENGTHS:
        if length <= max_num_tokens:
            yield 0, [length], (PLAIN,), 0
            yield 0, [length], (PLAIN,), 1
    yield 0, [min(PROMPT_LENGTHS[-1], max_num_tokens)], (HEAVIEST,), 0
    most = min(max_num_seqs, max_num_tokens)
    for size in (1 << n for n in range(most.bit_length())):
        if size < most:
            yield size, [1], (PLAIN,), 0
    for kind in KINDS:
        yield 0, [1], (kind,), 0
        if most > 1:
            yield most - 1, [1], (kind,), 0
            yield most - 1, [1], (PLAIN, kind), 0
