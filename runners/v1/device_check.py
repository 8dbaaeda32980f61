"""Self-check of steps on the device: they must compute the same logits as the plain model.

Two requests that no user can have are served greedily by the very steps that serve users, with their graphs
where there are some: a fresh prompt, a prompt in chunks beside a decode, decodes side by side, and one alone.
The plain model computes all their tokens in one pass. Then the same again by requests that need more of the
sampler than its base draw: they take other graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.interface import RESERVED_REQUEST_ID_PREFIX, NewRequest, SchedulerOutput
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.device_model import DeviceModel
from dodona.runners.v1.self_check import difference, plain_logits, tolerance_of

NEW_TOKENS = 6
"""Tokens that each request generates, about."""

_SEED = 0x0D0D0B


@dataclass(slots=True)
class _Row:
    """A request of the check, and what came of it."""

    row: int
    prompt: list[int]
    block_ids: Sequence[int]
    computed: int = 0
    output: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


def check_device_steps(
    model: DeviceModel, steps: DeviceSteps, *, num_blocks: int, prompt_length: int
) -> float:
    """The largest relative difference between logits of `steps` and of the plain model.

    Args:
        model: the model of `steps`.
        steps: initialized, with `num_blocks` KV blocks, and nothing under way. The blocks' contents and the
            first two state rows are overwritten.
        num_blocks: number of blocks.
        prompt_length: tokens of the longer prompt, shortened to what fits.

    Raises UnsupportedConfiguration with the difference where it exceeds the tolerance.
    """
    limits, block_size = steps.limits, steps.limits.block_size
    num_rows = min(2, limits.max_num_seqs, limits.max_num_batched_tokens, num_blocks)
    # A row's part of the block table has room for no more.
    blocks_per_row = min(num_blocks // num_rows, -(-steps.ready.max_model_len // block_size))
    room = min(blocks_per_row * block_size, steps.ready.max_model_len) - NEW_TOKENS
    length = max(1, min(prompt_length, limits.max_num_batched_tokens - 1, room))
    generator = torch.Generator().manual_seed(_SEED)
    largest = 0.0
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, logit_bias={0: 0.0})):
        rows = [
            _Row(
                row,
                torch.randint(0, model.packed.vocab_size, (n,), generator=generator).tolist(),
                range(row, num_rows * blocks_per_row, num_rows),
            )
            for row, n in enumerate((length, max(1, length - 5))[:num_rows])
        ]
        _serve(steps, rows, params, room=room + NEW_TOKENS)
        for row in rows:
            tokens = torch.tensor(row.prompt + row.output[:-1])
            with model.fusions.removed():
                expected = plain_logits(model.packed, tokens)[len(row.prompt) - 1 :]
            largest = max(largest, difference(expected, torch.stack(row.logits)))
    tolerance = tolerance_of(model.packed.model, model.packed.kv_dtype)
    if not largest <= tolerance:
        raise UnsupportedConfiguration.lacking(
            "v1",
            "architecture",
            why=f"self-check of {model.packed.name} on the device: its steps differ from the plain model by "
            f"{largest:.2g} (limit {tolerance:g})",
        )
    return largest


def _serve(steps: DeviceSteps, rows: Sequence[_Row], params: SamplingParams, *, room: int) -> None:
    """Generate for all rows; at most `room` tokens of each."""
    first, others = rows[0], rows[1:]
    _step(steps, [(first, len(first.prompt))], params)
    for other in others:
        half = len(other.prompt) // 2
        for count in filter(None, (half, len(other.prompt) - half)):
            decodes = [(first, 1)] if _has_room(first, room) else []
            _step(steps, [*decodes, (other, count)], params)
    # Last a token alone, whose products and experts are other kernels' than those of two.
    for together in (*[rows] * (NEW_TOKENS - 4), [first]):
        _step(steps, [(row, 1) for row in together if _has_room(row, room)], params)
    steps.execute(_scheduled([], params, freed=[row.row for row in rows]))
    steps.sample().result()


def _has_room(row: _Row, room: int) -> bool:
    return len(row.prompt) + len(row.output) < room


def _step(steps: DeviceSteps, parts: Sequence[tuple[_Row, int]], params: SamplingParams) -> None:
    if not parts:
        return
    steps.execute(_scheduled(parts, params))
    result = steps.sample().result()
    # A copy: the next step overwrites them.
    logits = steps.ready.steps.logits(len(result.rows)).to("cpu", torch.float32, copy=True)
    by_row = {row.row: row for row, _ in parts}
    for row, count in parts:
        row.computed += count
    for number, token, row_logits in zip(result.rows, result.token_ids, logits, strict=True):
        by_row[number].output.append(token)
        by_row[number].logits.append(row_logits)


def _scheduled(
    parts: Sequence[tuple[_Row, int]], params: SamplingParams, freed: Sequence[int] = ()
) -> SchedulerOutput:
    """A step of each row's next tokens, as a scheduler would give it."""
    new = [
        NewRequest(
            request_id=f"{RESERVED_REQUEST_ID_PREFIX}check_{row.row}",
            row=row.row,
            token_ids=row.prompt,
            num_prompt_tokens=len(row.prompt),
            num_computed_tokens=0,
            block_ids=row.block_ids,
            sampling_params=params,
            seed=0,
        )
        for row, _ in parts
        if row.computed == 0
    ]
    return SchedulerOutput(
        step=0,
        freed_rows=freed,
        new_requests=new,
        new_blocks=(),
        rows=[row.row for row, _ in parts],
        num_tokens=[count for _, count in parts],
        num_computed_tokens=[row.computed for row, _ in parts],
        samples=[row.computed + count >= len(row.prompt) for row, count in parts],
        num_decodes=sum(row.computed >= len(row.prompt) for row, _ in parts),
    )
