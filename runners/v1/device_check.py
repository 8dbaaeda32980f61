"""Self-check of steps on the device: they must compute the same logits as the plain model.

Two requests that no user can have are served greedily by the very steps that serve users, with their graphs
where there are some: a fresh prompt, a prompt in chunks beside a decode, decodes side by side, one alone, and
drafts of both where such are verified. The plain model computes all their tokens in one pass. Then the same
again by requests that need more of the sampler than its base draw: they take other graphs.

What the check is to find are faults of the layout: a wrong block, slot, position or mask. Where quantized
layers round their inputs (to FP8, int8), the last bits of another order of summation become whole steps of
that rounding, and those go on through all layers: two right ways differ by more than a wrong slot would
change. So both ways are compared without that rounding (`unrounded_inputs`), by the layers' own computation,
at the tolerance of unquantized models. The rounding is each token's own affair and knows no layout; kernels
that do it are compared with their layers one by one (`fusions`). Captured graphs hold the rounding, so they
are compared with the same steps launched kernel by kernel, which run the very same kernels; and those steps,
without rounding, with the plain model.

A router is another place where last bits become whole steps: of a near tie between two experts either may be
chosen. Where a model with experts differs, both ways are compared once more with experts that contribute
nothing. That they, too, compute each token by itself was shown before this check by `self_check`, which
allows for no tie, and kernels in their place were compared with them. A wrong layout is seen in attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.device.graphs import LaunchedSteps
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.interface import RESERVED_REQUEST_ID_PREFIX, NewRequest, SchedulerOutput
from dodona.runners.quantization.replacement import (
    has_experts,
    rounds_inputs,
    unrounded_inputs,
    without_experts,
)
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.device_model import DeviceModel
from dodona.runners.v1.self_check import difference, plain_logits, tolerance_of

NEW_TOKENS = 6
"""Tokens that each request generates, about."""

_SEED = 0x0D0D0B

_SAMPLINGS = (SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, logit_bias={0: 0.0}))


@dataclass(slots=True)
class _Row:
    """A request of the check, and what came of it."""

    row: int
    prompt: list[int]
    block_ids: Sequence[int]
    computed: int = 0
    output: list[int] = field(default_factory=list)
    drafts: Sequence[int] = ()
    """Verified last, after all of `output`."""
    logits: list[torch.Tensor] = field(default_factory=list)
    """After the prompt, and after each token that a step took thereafter."""

    @property
    def fed(self) -> list[int]:
        """The tokens that steps took."""
        return [*self.prompt, *self.output, *self.drafts] if self.drafts else self.prompt + self.output[:-1]


def check_device_steps(
    model: DeviceModel, steps: DeviceSteps, *, num_blocks: int, prompt_length: int
) -> float:
    """The largest relative difference between logits of `steps` and of the plain model.

    Args:
        model: the model of `steps`.
        steps: initialized, with `num_blocks` KV blocks, and nothing under way. The blocks' contents and the
            first two state rows are overwritten. Without graphs where the model rounds inputs or has experts.
        num_blocks: number of blocks.
        prompt_length: tokens of the longer prompt, shortened to what fits.

    Raises UnsupportedConfiguration with the difference where it exceeds the tolerance.
    """
    whole = model.packed.model
    with unrounded_inputs(whole):
        tolerance = tolerance_of(whole, model.packed.kv_dtype)
        largest = _difference_from_plain(model, steps, num_blocks, prompt_length)
        if not largest <= tolerance and has_experts(whole):
            with without_experts(whole):
                largest = _difference_from_plain(model, steps, num_blocks, prompt_length)
    if not largest <= tolerance:
        raise _refusal(model, f"its steps differ from the plain model by {largest:.2g} (limit {tolerance:g})")
    return largest


def _difference_from_plain(
    model: DeviceModel, steps: DeviceSteps, num_blocks: int, prompt_length: int
) -> float:
    largest = 0.0
    for row in _served(steps, model.packed.vocab_size, num_blocks, prompt_length):
        with model.fusions.removed():
            expected = plain_logits(model.packed, torch.tensor(row.fed))[len(row.prompt) - 1 :]
        largest = max(largest, difference(expected, torch.stack(row.logits)))
    return largest


def check_graphs(model: DeviceModel, steps: DeviceSteps, *, num_blocks: int, prompt_length: int) -> float:
    """The same of steps by graphs, which `steps` has. See `check_device_steps`.

    Graphs of a model that rounds inputs, or has experts, are compared with the same steps launched kernel by
    kernel, and those with the plain model.
    """
    graphs, whole = steps.ready.graphs, model.packed.model
    if graphs is None or not (rounds_inputs(whole) or has_experts(whole)):
        return check_device_steps(model, steps, num_blocks=num_blocks, prompt_length=prompt_length)
    steps.use_graphs(LaunchedSteps(graphs.sizes, steps.ready.steps.run))
    try:
        largest = check_device_steps(model, steps, num_blocks=num_blocks, prompt_length=prompt_length)
        launched = _served(steps, model.packed.vocab_size, num_blocks, prompt_length)
    finally:
        steps.use_graphs(graphs)
    replayed = _served(steps, model.packed.vocab_size, num_blocks, prompt_length)
    found = max(_difference(*rows) for rows in zip(launched, replayed, strict=True))
    tolerance = tolerance_of(whole, model.packed.kv_dtype)
    if not found <= tolerance:
        raise _refusal(
            model, f"a graph's step differs from the same one launched by {found:.2g} (limit {tolerance:g})"
        )
    return max(largest, found)


def _difference(launched: _Row, replayed: _Row) -> float:
    """Between logits of two rows, as far as they follow the same tokens."""
    pairs = zip(launched.fed, replayed.fed, strict=True)
    count = 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    count -= len(launched.prompt)
    return difference(torch.stack(launched.logits[:count]), torch.stack(replayed.logits[:count]))


def _served(steps: DeviceSteps, vocab_size: int, num_blocks: int, prompt_length: int) -> list[_Row]:
    """The requests of the check, after `steps` has served them: the same ones each time."""
    limits, block_size = steps.limits, steps.limits.block_size
    num_rows = min(2, limits.max_num_seqs, limits.max_num_batched_tokens, num_blocks)
    # A row's part of the block table has room for no more.
    blocks_per_row = min(num_blocks // num_rows, -(-steps.ready.max_model_len // block_size))
    new_tokens = NEW_TOKENS + steps.num_speculative_tokens
    room = min(blocks_per_row * block_size, steps.ready.max_model_len) - new_tokens
    length = max(1, min(prompt_length, limits.max_num_batched_tokens - 1, room))
    generator = torch.Generator().manual_seed(_SEED)
    served = []
    for params in _SAMPLINGS:
        rows = [
            _Row(
                row,
                torch.randint(0, vocab_size, (n,), generator=generator).tolist(),
                range(row, num_rows * blocks_per_row, num_rows),
            )
            for row, n in enumerate((length, max(1, length - 5))[:num_rows])
        ]
        _serve(steps, rows, params, room=room + new_tokens)
        served += rows
    return served


def _refusal(model: DeviceModel, what: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking(
        "v1", "architecture", why=f"self-check of {model.packed.name} on the device: {what}"
    )


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
    if steps.num_speculative_tokens:
        _verify(steps, [row for row in rows if _has_room(row, room - steps.num_speculative_tokens)], params)
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


def _verify(steps: DeviceSteps, rows: Sequence[_Row], params: SamplingParams) -> None:
    """A step in which rows verify drafts: their prompts' first tokens."""
    count = steps.num_speculative_tokens
    rows = rows[: steps.limits.max_num_batched_tokens // (1 + count)]
    for row in rows:
        row.drafts = [row.prompt[i % len(row.prompt)] for i in range(count)]
    if not rows:
        return
    scheduled = _scheduled([(row, 1 + count) for row in rows], params)
    steps.execute(replace(scheduled, draft_token_ids={row.row: row.drafts for row in rows}, num_decodes=0))
    steps.sample().result()
    logits = steps.ready.steps.logits(len(rows) * (1 + count)).to("cpu", torch.float32, copy=True)
    for row, own in zip(rows, torch.split(logits, 1 + count), strict=True):
        row.logits += own


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
