"""One step of V1: the forward pass over the rows that the scheduler names, then sampling.

A row that verifies drafts is sampled after its token and after each draft, each time as if all drafts before
had been accepted. Its tokens are those up to the first that differs from the draft in its place: what it
would have sampled without drafts, from the same logits and with the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dodona.runners.drafting.acceptance import accepted_output
from dodona.runners.interface import FurtherTokens, GrammarOutput, SchedulerOutput, StepOutput
from dodona.runners.sampling import reference as sampling
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from dodona.runners.v1.batch_state import BatchState
from dodona.runners.v1.drafting.drafter import DraftContext, Drafter
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.served_model import ServedModel, StepCache
from dodona.runners.v1.state_slots import StateSlots
from dodona.runners.v1.step_layout import StepLayout, to_device
from dodona.runners.v1.window_tables import WindowTables

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowLogits:
    """Where a row's logits are among a step's: from `start` on, one for each prompt target, then, if the row
    samples, those to sample from: one, and one more for each draft."""

    row: int
    start: int
    prompt_targets: tuple[int, ...]
    """The prompt tokens whose log-probabilities are asked for and computed in this step."""
    samples: bool
    drafts: Sequence[int]
    """The drafts that the row verifies."""

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
    step: SchedulerOutput
    starts: np.ndarray
    """[R]: packed index of the first token of each row of the step."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model with its cache and the state rows of its requests."""

    model: ServedModel
    cache: StepCache
    windows: WindowTables
    states: StateSlots
    batch: BatchState
    drafter: Drafter | None = None
    lora: LoRALayers | None = None

    def execute(self, step: SchedulerOutput) -> ExecutedStep:
        """Apply what the step changes in the state rows, then run the forward pass.

        Raises ValueError where the step contradicts the state rows: a row taken twice, tokens that aren't
        there yet, too few KV blocks, or inner states of other tokens.
        """
        self.windows.attach(step.window_blocks)
        self.batch.apply(step)
        self.cache.free_rows(step.freed_rows)
        if not step.rows:
            return ExecutedStep(torch.empty(0, 0), (), step, np.empty(0))
        block_size, device = self.cache.block_size, self.model.device
        tables = self.batch.block_tables(step, block_size)
        counts = step.num_tokens, step.num_computed_tokens
        prompts = [len(self.batch[row].prompt_token_ids) for row in step.rows]
        layout = StepLayout(*counts, tables, block_size, device, step.rows, prompts)
        window_layouts: dict[int, StepLayout] = {}
        for calls, window_tables in self.windows.tables(tables):
            of_group = StepLayout(*counts, window_tables, block_size, device, step.rows, prompts)
            window_layouts.update(dict.fromkeys(calls, of_group))
        states = self.states.step(
            step.rows, step.num_tokens, step.num_computed_tokens, verifying=step.draft_token_ids
        )
        rows, positions = self._rows_with_logits(step, layout)
        # A step of prompt chunks alone needs no logits, but the head must be given a position.
        computed = np.asarray(positions or [layout.total_tokens - 1], dtype=np.int64)
        token_ids = to_device(self.batch.input_token_ids(step), device)
        kept = to_device(computed, device)
        with self._adapters(step, kept):
            logits = self.model.forward(token_ids, layout, self.cache, kept, states, window_layouts)
        return ExecutedStep(logits[: len(positions)], rows, step, layout.starts)

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
            if prompt_logprobs:  # else those to sample from are all of them, in order
                kept = [row.prompt_end + i for row in sampled for i in range(1 + len(row.drafts))]
                logits = logits[kept]
            result = sampling.sample(logits, self._sampling_rows(sampled, grammar_output))
        output = accepted_output(
            [row.row for row in sampled],
            executed.step.draft_token_ids,
            result.token_ids,
            result.logprobs,
            prompt_logprobs,
        )
        self.take(output)
        return replace(output, draft_token_ids=self._propose(executed, output.further))

    def take(self, output: StepOutput) -> None:
        """Append what was sampled, here or on another rank, to the state rows."""
        for row, token_id in zip(output.rows, output.token_ids, strict=True):
            self.batch[row].output_token_ids.append(token_id)
        for row, further in output.further.items():
            self.batch[row].output_token_ids.extend(further.token_ids)

    def _propose(
        self, executed: ExecutedStep, further: Mapping[int, FurtherTokens]
    ) -> Mapping[int, Sequence[int]]:
        """Drafts for the next step, by row."""
        if self.drafter is None:
            return {}
        step, contexts = executed.step, []
        for i, row in enumerate(step.rows):
            if self.batch[row].output_token_ids[-1:] == [sampling.NO_TOKEN]:
                continue  # its request ends here
            start, end = step.num_computed_tokens[i], step.num_computed_tokens[i] + step.num_tokens[i]
            if row in step.draft_token_ids:
                accepted = len(further[row].token_ids) if row in further else 0
                end -= len(step.draft_token_ids[row]) - accepted
            contexts.append(
                DraftContext(row, self.batch[row], int(executed.starts[i]), start, end, step.samples[i])
            )
        return self.drafter.propose(contexts) if contexts else {}

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
            drafts = step.draft_token_ids.get(row, ())
            rows.append(RowLogits(row, len(positions), targets, step.samples[i], drafts))
            start = int(layout.starts[i])
            positions.extend(range(start, start + len(targets)))
            if step.samples[i]:
                last = int(layout.last_tokens[i])
                positions.extend(range(last - len(drafts), last + 1))
        return rows, positions

    def _prompt_logprobs(self, logits: torch.Tensor, row: RowLogits) -> Sequence[TokenLogprobs]:
        top_n = self.batch[row.row].sampling_params.prompt_logprobs or 0
        return sampling.prompt_logprobs(logits[row.start : row.prompt_end], row.prompt_targets, top_n)

    def _sampling_rows(
        self, sampled: Sequence[RowLogits], grammar_output: GrammarOutput | None
    ) -> list[sampling.SamplingRow]:
        bitmasks: dict[int, list[npt.NDArray[np.int32]]] = {}
        if grammar_output is not None:
            for state_row, words in zip(grammar_output.rows, grammar_output.bitmask, strict=True):
                bitmasks.setdefault(state_row, []).append(words)
        found = []
        for row in sampled:
            if not row.drafts and not bitmasks:
                found.append(self.batch[row.row].sampling_row(None))
                continue
            size = 1 + len(row.drafts)
            masks: Sequence[npt.NDArray[np.int32] | None] = bitmasks.get(row.row, [None] * size)
            state = self.batch[row.row]
            found += [state.sampling_row(masks[i], row.drafts[:i]) for i in range(size)]
        return found
