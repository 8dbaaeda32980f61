"""The kinds of batch that V2 runs. A scheduler's step becomes one of them, once; each launches its forward
pass, samples, and appends the tokens in its own way."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from dodona.runners.device.forward_inputs import RowChunk
from dodona.runners.device.graphs import FixedStep, StepGraphs
from dodona.runners.device.sampling.prompt_logprobs import PromptChunk, PromptHidden, PromptLogprobRequests
from dodona.runners.device.sampling.sampler import SampledTokens
from dodona.runners.device.sampling.stage import SamplingBatch
from dodona.runners.device.state import DraftBatchSizes
from dodona.runners.device.step import StepRunner
from dodona.runners.device.step_drafts import StepDrafts
from dodona.runners.interface import GrammarOutput, SchedulerOutput


class Batch(Protocol):
    """A step's batch, as the state on the device describes it."""

    @property
    def rows(self) -> Sequence[int]:
        """State rows that sample, in batch order."""

    @property
    def drafts(self) -> Mapping[int, Sequence[int]]:
        """By row, those that it verifies."""

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> PromptHidden | None:
        """Launch the forward pass. Returns what prompt log-probabilities are computed from, where asked
        for."""

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """Launch the sampler and the state's update, where `launch` did not. After `launch`, before any other
        batch's."""

    def propose(
        self, steps: StepRunner, drafts: StepDrafts, sampled: SampledTokens, graphs: StepGraphs | None
    ) -> torch.Tensor | None:
        """Launch the drafter: [rows, k], see `DeviceDrafter.propose`, which the next step's may overwrite;
        None without rows. After `sample`."""


NO_DRAFTS: Mapping[int, Sequence[int]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class EmptyBatch:
    """No rows: the step only changed the state."""

    drafts: ClassVar[Mapping[int, Sequence[int]]] = NO_DRAFTS
    rows: Sequence[int] = ()

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> None:
        """Nothing."""

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """No tokens."""
        return SampledTokens(steps.sampled(0))

    def propose(
        self, steps: StepRunner, drafts: StepDrafts, sampled: SampledTokens, graphs: StepGraphs | None
    ) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodeBatch:
    """One token of each row. Padding may follow the rows."""

    drafts: ClassVar[Mapping[int, Sequence[int]]] = NO_DRAFTS
    rows: Sequence[int]
    fixed: FixedStep

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> None:
        """The step of fixed form."""
        steps.launch(self.fixed, graphs)

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """What the step drew; or, where it ended with the logits, what the sampler draws from them."""
        count = len(self.rows)
        if self.fixed.samples:
            return SampledTokens(steps.sampled(count))
        sampled = steps.sampler.sample(
            steps.logits(count),
            SamplingBatch(self.rows, steps.state.rows[:count], steps.decode_positions(count), grammar_output),
        )
        steps.update_decodes(count, sampled.token_ids)
        return sampled

    def propose(
        self, steps: StepRunner, drafts: StepDrafts, sampled: SampledTokens, graphs: StepGraphs | None
    ) -> torch.Tensor:
        """After each row's token."""
        count = len(self.rows)
        inputs = steps.single_inputs(self.fixed.size, has_drafts=False)
        return drafts.propose(inputs, steps.state.rows[:count], steps.decode_places(count))


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """The whole of one fresh prompt, which samples. Padding may follow its tokens."""

    drafts: ClassVar[Mapping[int, Sequence[int]]] = NO_DRAFTS
    rows: Sequence[int]
    """One."""
    fixed: FixedStep

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> None:
        """The step of fixed form."""
        steps.launch(self.fixed, graphs)

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """What the step drew; or, where it ended with the logits, what the sampler draws from them."""
        if self.fixed.samples:
            return SampledTokens(steps.sampled(1))
        return _sample_and_append(steps, self.rows, 1, grammar_output)

    def propose(
        self, steps: StepRunner, drafts: StepDrafts, sampled: SampledTokens, graphs: StepGraphs | None
    ) -> torch.Tensor:
        """After the prompt."""
        state = steps.state
        inputs = steps.prompt_inputs(self.fixed.size)
        return drafts.propose(inputs, state.sample_rows[:1], state.sample_tokens[:1])


@dataclass(frozen=True, slots=True, eq=False)
class MixedBatch:
    """Any rows: decodes first, then chunks of prompts."""

    drafts: ClassVar[Mapping[int, Sequence[int]]] = NO_DRAFTS
    rows: Sequence[int]
    num_rows: int
    """Rows of the batch, of which `rows` sample."""
    num_tokens: int
    num_decodes: int
    max_fresh_len: int
    """Longest chunk that begins a sequence; 0 where there is none."""
    max_continued_len: int
    """Longest chunk with tokens before it; 0 where there is none."""
    chunks: Sequence[RowChunk]
    """The rows that are no decodes."""
    prompt_chunks: Sequence[PromptChunk]
    """Positions whose log-probabilities are asked for."""

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> PromptHidden | None:
        """The forward pass, launch by launch."""
        hidden = steps.launch_mixed(
            self.num_rows,
            self.num_tokens,
            self.num_decodes,
            self.max_fresh_len,
            self.max_continued_len,
            len(self.rows),
            chunks=self.chunks,
            keep_hidden=bool(self.prompt_chunks),
        )
        return None if hidden is None else PromptHidden(self.prompt_chunks, hidden)

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """What the sampler draws; rows that do not sample only advance."""
        return _sample_and_append(steps, self.rows, self.num_rows, grammar_output)

    def propose(
        self, steps: StepRunner, drafts: StepDrafts, sampled: SampledTokens, graphs: StepGraphs | None
    ) -> torch.Tensor:
        """After the rows that sampled."""
        count, state = len(self.rows), steps.state
        inputs = steps.mixed_inputs(
            self.num_rows,
            self.num_tokens,
            self.num_decodes,
            self.max_fresh_len,
            self.max_continued_len,
            chunks=self.chunks,
        )
        return drafts.propose(inputs, state.sample_rows[:count], state.sample_tokens[:count])


@dataclass(frozen=True, slots=True, eq=False)
class DraftBatch:
    """Any rows, of which some verify drafts: decodes, those, and chunks of prompts. A decode or draft is an
    entry of one token. Without chunks it is a step of fixed form; padding may follow the entries."""

    drafts: Mapping[int, Sequence[int]]
    rows: Sequence[int]
    sample_rows: Sequence[int]
    """State row of each entry that samples."""
    num_entries: int
    num_tokens: int
    num_single: int
    """Leading entries of one token."""
    max_fresh_len: int
    max_continued_len: int
    chunks: Sequence[RowChunk]
    prompt_chunks: Sequence[PromptChunk]
    """These four: see `MixedBatch`."""
    fixed: FixedStep | None
    """None where there are chunks, or more entries than steps of fixed form have."""

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> PromptHidden | None:
        """The step of fixed form, or the forward pass, launch by launch."""
        if self.fixed is not None:
            steps.launch(self.fixed, graphs)
            return None
        hidden = steps.launch_mixed(
            self.num_entries,
            self.num_tokens,
            self.num_single,
            self.max_fresh_len,
            self.max_continued_len,
            len(self.sample_rows),
            chunks=self.chunks,
            keep_hidden=bool(self.prompt_chunks),
            has_drafts=True,
        )
        return None if hidden is None else PromptHidden(self.prompt_chunks, hidden)

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """What the step drew; or what the sampler draws."""
        count, state = len(self.sample_rows), steps.state
        if self.fixed is not None and self.fixed.samples:
            return SampledTokens(steps.verified(count))
        sampled = steps.sampler.sample(
            steps.logits(count),
            SamplingBatch(
                self.sample_rows,
                state.sample_rows[:count],
                steps.sample_positions(count),
                grammar_output,
                steps.drafts(count),
            ),
        )
        assert sampled.num_kept is not None  # the batch has drafts
        steps.update_mixed(self.num_entries, sampled.token_ids, sampled.num_kept)
        return sampled

    def propose(
        self, steps: StepRunner, drafts: StepDrafts, sampled: SampledTokens, graphs: StepGraphs | None
    ) -> torch.Tensor:
        """After what is kept of the rows that sampled."""
        state, num_kept = steps.state, sampled.num_kept
        if self.fixed is not None:
            if num_kept is not None:  # else the step's launch kept it
                steps.keep(num_kept)
            return drafts.propose_verified(self.fixed.size, len(self.rows), graphs)
        assert num_kept is not None  # the batch has drafts
        first = state.first_samples[: len(self.rows)]
        rows = torch.index_select(state.sample_rows, 0, first)
        last = torch.index_select(state.sample_tokens, 0, first)
        last += torch.index_select(num_kept, 0, first) - 1
        inputs = steps.mixed_inputs(
            self.num_entries,
            self.num_tokens,
            self.num_single,
            self.max_fresh_len,
            self.max_continued_len,
            chunks=self.chunks,
            has_drafts=True,
        )
        return drafts.propose(inputs, rows, last)


def _sample_and_append(
    steps: StepRunner, rows: Sequence[int], num_rows: int, grammar_output: GrammarOutput | None
) -> SampledTokens:
    """Draw for `rows`, of a batch of `num_rows` that the state describes as mixed, and update its state."""
    count, state = len(rows), steps.state
    if count:
        sampled = steps.sampler.sample(
            steps.logits(count),
            SamplingBatch(rows, state.sample_rows[:count], state.sample_positions[:count], grammar_output),
        )
    else:
        sampled = SampledTokens(steps.sampled(0))
    steps.update_mixed(num_rows, sampled.token_ids)
    return sampled


class BatchBuilder:
    """Brings a scheduler's steps into the state on the device, and tells what kind of batch each is."""

    def __init__(self, steps: StepRunner, *, entries_per_row: int = 1) -> None:
        """entries_per_row: least entries that a step of fixed form has for each row which verifies drafts:
        one more than its drafts, where something drafts on the device for all rows at once."""
        self._entries_per_row = entries_per_row
        self._state = steps.state
        self._sampler = steps.sampler
        self._long_context = functools.cache(steps.model.long_context)  # asked in every step
        self._prompt_logprobs = PromptLogprobRequests()
        self._decodes = DecodeBatch((), FixedStep(0, True))
        """The latest batch of decodes; most steps run it again."""
        self._verifying: tuple[DraftBatchSizes, DraftBatch] | None = None
        """Likewise the latest batch of rows that verify drafts on the device, with what the state said."""

    def build(self, step: SchedulerOutput, graphs: StepGraphs | None) -> Batch:
        """Send what the step changes to the device, and describe its batch there. Never waits."""
        self._prompt_logprobs.remove(step.freed_rows)
        for request in step.new_requests:
            self._state.add_request(request)
            self._sampler.add_request(request)
            self._prompt_logprobs.add_request(request)
        for row, block_ids in step.new_blocks:
            self._state.append_blocks(row, block_ids)
        batch = self._describe(step, graphs)
        self._state.flush()
        if step.new_requests:
            self._sampler.apply_staged_writes()
        return batch

    def _describe(self, step: SchedulerOutput, graphs: StepGraphs | None) -> Batch:
        batch = len(step.rows)
        if not batch:
            return EmptyBatch()
        if step.draft_token_ids:
            return self._draft_batch(step, graphs)
        if step.num_decodes == batch:
            size = batch if graphs is None else graphs.sizes.for_decodes(batch)
            if size is not None:
                return self._decode_batch(step, size)
        num_samples = self._state.set_mixed_batch(
            step.rows, step.num_computed_tokens, step.num_tokens, step.samples
        )
        prompt_chunks = self._prompt_logprobs.chunks(step)
        is_lone_prompt = batch == num_samples == 1 and not step.num_computed_tokens[0]
        if graphs is not None and is_lone_prompt and not prompt_chunks:
            size = graphs.sizes.for_prompt(step.num_tokens[0])
            if size is not None:
                base_only = not self._sampler.asked_stages(step.rows)
                return PromptBatch(step.rows, FixedStep(size, base_only, is_prompt=True))
        rows = step.rows
        if num_samples < batch:
            rows = [row for row, samples in zip(step.rows, step.samples, strict=True) if samples]
        chunks = _chunks(step, step.num_decodes, step.num_decodes)
        return MixedBatch(
            rows,
            num_rows=batch,
            num_tokens=step.total_tokens,
            num_decodes=step.num_decodes,
            max_fresh_len=max((c.num_tokens for c in chunks if not c.num_computed), default=0),
            max_continued_len=max((c.num_tokens for c in chunks if c.num_computed), default=0),
            chunks=chunks,
            prompt_chunks=prompt_chunks,
        )

    def _draft_batch(self, step: SchedulerOutput, graphs: StepGraphs | None) -> DraftBatch:
        drafts, num_single_rows = step.draft_token_ids, step.num_decodes + len(step.draft_token_ids)
        num_tokens = step.total_tokens
        has_chunks = num_single_rows < len(step.rows)
        size = None
        if not has_chunks:
            least = max(num_tokens, len(step.rows) * self._entries_per_row)
            size = num_tokens if graphs is None else graphs.sizes.for_drafts(least)
        sizes = self._state.set_draft_batch(
            step.rows,
            step.num_computed_tokens,
            step.num_tokens,
            step.samples,
            drafts=drafts,
            num_single=num_single_rows,
            padded_length=size or 0,
            padded_rows=(size or 0) // self._entries_per_row,
        )
        long_context = None if size is None else self._long_context(size, verifies=True)
        has_long = long_context is not None and max(step.num_computed_tokens) >= long_context
        if self._verifying is not None and self._verifying[0] is sizes:  # the state describes it already
            latest = self._verifying[1]
            if latest.fixed is None or latest.fixed.has_long == has_long:
                return latest
        chunks = _chunks(step, num_single_rows, sizes.num_single)
        rows = [row for row, samples in zip(step.rows, step.samples, strict=True) if samples]
        base_only = not self._sampler.asked_stages(rows)
        batch = DraftBatch(
            drafts,
            rows,
            sample_rows=[row for row in rows for _ in range(1 + len(drafts.get(row, ())))],
            num_entries=sizes.num_entries,
            num_tokens=num_tokens,
            num_single=sizes.num_single,
            max_fresh_len=max((c.num_tokens for c in chunks if not c.num_computed), default=0),
            max_continued_len=max((c.num_tokens for c in chunks if c.num_computed), default=0),
            chunks=chunks,
            prompt_chunks=self._prompt_logprobs.chunks(step),
            fixed=None if size is None else FixedStep(size, base_only, verifies=True, has_long=has_long),
        )
        self._verifying = sizes, batch
        return batch

    def _decode_batch(self, step: SchedulerOutput, size: int) -> DecodeBatch:
        changed = self._state.set_decode_batch(step.rows, step.num_computed_tokens, size)
        long_context = self._long_context(size, verifies=False)
        has_long = long_context is not None and max(step.num_computed_tokens) >= long_context
        if changed or step.new_requests or has_long != self._decodes.fixed.has_long:
            base_only = not self._sampler.asked_stages(step.rows)
            self._decodes = DecodeBatch(step.rows, FixedStep(size, base_only, has_long=has_long))
        return self._decodes


def _chunks(step: SchedulerOutput, first_row: int, first_token: int) -> list[RowChunk]:
    """The step's rows from the `first_row`-th on, whose tokens begin at packed index `first_token`."""
    chunks, start = [], first_token
    for row, count, computed in zip(
        step.rows[first_row:], step.num_tokens[first_row:], step.num_computed_tokens[first_row:], strict=True
    ):
        chunks.append(RowChunk(row, start, count, computed))
        start += count
    return chunks
