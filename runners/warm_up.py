"""Warm-up: a runner's first steps, by requests whose ids are reserved."""

from __future__ import annotations

from dodona.runners.interface import RESERVED_REQUEST_ID_PREFIX, NewRequest, Runner, SchedulerOutput
from dodona.runners.sampling.params import SamplingParams

_TOKEN = 0
"""A token id that every vocabulary has."""

_LONGEST = 8
"""Most tokens of a warm-up request."""


def warm_up(runner: Runner) -> None:
    """Run two requests, one after the other, on a runner whose KV cache is initialised.

    Each one's prompt is computed in two chunks; then it decodes one token, where `max_model_len` is not 1,
    and its row is freed, the last row by a step that does nothing else. The prefix cache is not told of the
    KV that stays in the first blocks.
    """
    limits, spec = runner.limits, runner.get_kv_cache_spec()
    groups = range(len(spec.window_groups))
    # Within one block, or two tokens: then it is also within a length that was lowered to what the blocks
    # hold.
    most = min(_LONGEST, max(2, spec.block_size), limits.max_model_len)
    length = max(1, min(most - 1, limits.max_num_batched_tokens))
    first = max(1, length // 2)
    freed_rows: list[int] = []
    step = 0
    greedy = SamplingParams(temperature=0.0, max_tokens=None)
    # What the runner would otherwise compile in a user's request.
    every_stage = SamplingParams(
        **{
            "temperature": 0.7,
            "logprobs": 1,
            "prompt_logprobs": 1,
            "max_tokens": None,
            **runner.warm_up_params,
        }
    )
    for number, params in enumerate((greedy, every_stage)):
        request = NewRequest(
            request_id=f"{RESERVED_REQUEST_ID_PREFIX}warm_up_{number}",
            row=0,
            token_ids=(_TOKEN,) * length,
            num_prompt_tokens=length,
            num_computed_tokens=0,
            block_ids=tuple(range(-(-min(length + 1, most) // spec.block_size))),
            sampling_params=params,
            seed=number,
            stop_token_ids=(_TOKEN,),
            bad_words_token_ids=((_TOKEN, _TOKEN),),
        )
        new_requests = [request]
        window_blocks = [(group, block_id, block_id) for group in groups for block_id in request.block_ids]
        for start, end in ((0, first), (first, length), (length, length + 1)):
            if start == end or end > most:
                continue
            output = SchedulerOutput(
                step=step,
                freed_rows=freed_rows,
                new_requests=new_requests,
                new_blocks=(),
                rows=(0,),
                num_tokens=(end - start,),
                num_computed_tokens=(start,),
                samples=(end >= length,),
                num_decodes=int(start == length),
                window_blocks=window_blocks,
            )
            _run(runner, output)
            freed_rows, new_requests = [], []
            step += 1
        freed_rows = [0]
    _run(
        runner,
        SchedulerOutput(
            step=step,
            freed_rows=freed_rows,
            new_requests=(),
            new_blocks=(),
            rows=(),
            num_tokens=(),
            num_computed_tokens=(),
            samples=(),
            num_decodes=0,
        ),
    )


def _run(runner: Runner, output: SchedulerOutput) -> None:
    runner.execute_model(output)
    runner.sample_tokens().result()
