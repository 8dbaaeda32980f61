"""The kinds of batch that V2 runs. A scheduler's step becomes one of them, once; each launches its forward
pass, samples, and appends the tokens in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dodona.runners.device.forward_inputs import RowChunk
from dodona.runners.device.graphs import FixedStep, StepGraphs
from dodona.runners.device.sampling.prompt_logprobs import PromptChunk, PromptHidden, PromptLogprobRequests
from dodona.runners.device.sampling.sampler import SampledTokens
from dodona.runners.device.sampling.stage import SamplingBatch
from dodona.runners.device.step import StepRunner
from dodona.runners.interface import GrammarOutput, SchedulerOutput


class Batch(Protocol):
    """A step's batch, as the state on the device describes it."""

    @property
    def rows(self) -> Sequence[int]:
        """State rows that sample, in batch order."""

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> PromptHidden | None:
        """Launch the forward pass. Returns what prompt log-probabilities are computed from, where asked
        for."""

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """Launch the sampler and the state's update, where `launch` did not. After `launch`, before any other
        batch's."""


@dataclass(frozen=True, slots=True, eq=False)
class EmptyBatch:
    """No rows: the step only changed the state."""

    rows: Sequence[int] = ()

    def launch(self, steps: StepRunner, graphs: StepGraphs | None) -> None:
        """Nothing."""

    def sample(self, steps: StepRunner, grammar_output: GrammarOutput | None) -> SampledTokens:
        """No tokens."""
        return SampledTokens(steps.sampled(0))


@dataclass(frozen=True, slots=True, eq=False)
class DecodeBatch:
    """One token of each row. Padding may follow the rows."""

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


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """The whole of one fresh prompt, which samples. Padding may follow its tokens."""

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


@dataclass(frozen=True, slots=True, eq=False)
class MixedBatch:
    """Any rows: decodes first, then chunks of prompts."""

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

    def __init__(self, steps: StepRunner) -> None:
        self._state = steps.state
        self._sampler = steps.sampler
        self._prompt_logprobs = PromptLogprobRequests()
        self._decodes = DecodeBatch((), FixedStep(0, True))
        """The latest batch of decodes; most steps run it again."""

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
        decodes = step.num_decodes
        chunks, start = [], decodes
        for row, count, computed in zip(
            step.rows[decodes:], step.num_tokens[decodes:], step.num_computed_tokens[decodes:], strict=True
        ):
            chunks.append(RowChunk(row, start, count, computed))
            start += count
        return MixedBatch(
            rows,
            num_rows=batch,
            num_tokens=step.total_tokens,
            num_decodes=decodes,
            max_fresh_len=max((c.num_tokens for c in chunks if not c.num_computed), default=0),
            max_continued_len=max((c.num_tokens for c in chunks if c.num_computed), default=0),
            chunks=chunks,
            prompt_chunks=prompt_chunks,
        )

    def _decode_batch(self, step: SchedulerOutput, size: int) -> DecodeBatch:
        changed = self._state.set_decode_batch(step.rows, step.num_computed_tokens, size)
        if changed or step.new_requests:
            base_only = not self._sampler.asked_stages(step.rows)
            self._decodes = DecodeBatch(step.rows, FixedStep(size, base_only))
        return self._decodes
