"""One step of V1: a packed forward pass over the rows that the scheduler names, then sampling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dodona.runners.interface import GrammarOutput, SchedulerOutput, StepOutput
from dodona.runners.sampling import reference as sampling
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from dodona.runners.v1.batch_state import BatchState
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.state_slots import StateSlots
from dodona.runners.v1.step_layout import StepLayout, to_device

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowLogits:
    """Where a row's logits are among a step's: from `start` on, one for each prompt target, then, if the row
    samples, the one to sample from."""

    row: int
    start: int
    prompt_targets: tuple[int, ...]
    """The prompt tokens whose log-probabilities are asked for and computed in this step."""
    samples: bool

    @property
    def prompt_end(self) -> int:
        """Index after the logits of the prompt targets: that of the logits to sample from."""
        return self.start + len(self.prompt_targets)


@dataclass(frozen=True, slots=True)
class ExecutedStep:
    """A forward pass whose rows are not sampled yet."""

    logits: torch.Tensor
    """[n, vocab], in the order of `rows`."""
    rows: Sequence[RowLogits]
    """Rows that need logits, in batch order."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model with a KV cache and the state rows of its requests."""

    model: PackedModel
    cache: PagedKVCache
    states: StateSlots
    batch: BatchState
    lora: LoRALayers | None

    def execute(self, step: SchedulerOutput) -> ExecutedStep:
        """Apply what the step changes in the state rows, then run the forward pass.

        Raises ValueError where the step contradicts the state rows: a row taken twice, tokens that aren't
        there yet, too few KV blocks, or inner states of other tokens.
        """
        self.batch.apply(step)
        if not step.rows:
            return ExecutedStep(torch.empty(0, 0), ())
        block_size, device = self.cache.block_size, self.model.device
        layout = StepLayout(
            step.num_tokens,
            step.num_computed_tokens,
            self.batch.block_tables(step, block_size),
            block_size,
            device,
        )
        states = self.states.step(step.rows, step.num_tokens, step.num_computed_tokens)
        rows, positions = self._rows_with_logits(step, layout)
        # A step of prompt chunks alone needs no logits, but the head must be given a position.
        computed = np.asarray(positions or [layout.total_tokens - 1], dtype=np.int64)
        token_ids = to_device(self.batch.input_token_ids(step), device)
        kept = to_device(computed, device)
        with self._adapters(step, kept):
            logits = self.model.forward(token_ids, layout, self.cache, kept, states)
        return ExecutedStep(logits[: len(positions)], rows)

    def sample(self, executed: ExecutedStep, grammar_output: GrammarOutput | None) -> StepOutput:
        """Sample for the rows that yield a token, and append the tokens to their state rows.

        Raises ValueError where `grammar_output` lacks a row whose request has structured outputs.
        """
        sampled = [row for row in executed.rows if row.samples]
        with torch.inference_mode():
            prompt_logprobs = {
                row.row: self._prompt_logprobs(executed.logits, row)
                for row in executed.rows
                if row.prompt_targets
            }
            logits = executed.logits
            if len(sampled) < len(logits):  # else they are in order already: all rows decode
                logits = logits[[row.prompt_end for row in sampled]]
            result = sampling.sample(logits, self._sampling_rows(sampled, grammar_output))
        rows = [row.row for row in sampled]
        for row, token_id in zip(rows, result.token_ids, strict=True):
            self.batch[row].output_token_ids.append(token_id)
        logprobs = {row: entry for row, entry in zip(rows, result.logprobs, strict=True) if entry is not None}
        return StepOutput(rows, result.token_ids, logprobs, prompt_logprobs)

    def _adapters(self, step: SchedulerOutput, kept: torch.Tensor) -> AbstractContextManager[None]:
        """The adapters of the step's rows, for the forward pass inside."""
        if self.lora is None:
            return nullcontext()
        adapters = [self.batch[row].request.adapter for row in step.rows]
        return self.lora.step(adapters, step.num_tokens, kept)

    def _rows_with_logits(
        self, step: SchedulerOutput, layout: StepLayout
    ) -> tuple[list[RowLogits], list[int]]:
        """The rows that need logits, and the packed indices of all these logits, in the rows' order."""
        rows: list[RowLogits] = []
        positions: list[int] = []
        for i, row in enumerate(step.rows):
            request = self.batch[row]
            targets: tuple[int, ...] = ()
            if request.sampling_params.prompt_logprobs is not None:
                computed = step.num_computed_tokens[i]
                targets = request.prompt_token_ids[computed + 1 : computed + step.num_tokens[i] + 1]
            if not targets and not step.samples[i]:
                continue
            rows.append(RowLogits(row, len(positions), targets, step.samples[i]))
            start = int(layout.starts[i])
            positions.extend(range(start, start + len(targets)))
            if step.samples[i]:
                positions.append(int(layout.last_tokens[i]))
        return rows, positions

    def _prompt_logprobs(self, logits: torch.Tensor, row: RowLogits) -> Sequence[TokenLogprobs]:
        top_n = self.batch[row.row].sampling_params.prompt_logprobs or 0
        return sampling.prompt_logprobs(logits[row.start : row.prompt_end], row.prompt_targets, top_n)

    def _sampling_rows(
        self, sampled: Sequence[RowLogits], grammar_output: GrammarOutput | None
    ) -> list[sampling.SamplingRow]:
        bitmasks: dict[int, npt.NDArray[np.int32]] = {}
        if grammar_output is not None:
            bitmasks = dict(zip(grammar_output.rows, grammar_output.bitmask, strict=True))
        return [self.batch[row.row].sampling_row(bitmasks.get(row.row)) for row in sampled]
