"""The computation of a step: inputs from the state, forward pass, logits, sampling, state update.

All of it is launches on one stream, in order; nothing here reads the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dodona.kernels.state.step_state import prepare_inputs, update_state
from dodona.runners.device.forward_inputs import ForwardInputs, RowChunk
from dodona.runners.device.graphs import FixedStep, StepGraphs
from dodona.runners.device.model import StepModel
from dodona.runners.device.sampling.ring import SampleRing
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.sampling.stage import VerifiedDrafts
from dodona.runners.device.state import RequestState


class StepRunner:
    """Runs steps over one model and one state, in tensors that stay where they are (graphs hold their
    addresses)."""

    def __init__(
        self,
        *,
        model: StepModel,
        state: RequestState,
        sampler: DeviceSampler,
        kv_caches: Sequence[torch.Tensor],
        block_size: int,
        max_num_entries: int,
        max_num_tokens: int,
        max_steps_in_flight: int,
        num_speculative_tokens: int = 0,
    ) -> None:
        """
        max_num_entries: most entries of a batch, as of `state`.
        num_speculative_tokens: most drafts of a row in a step.
        """
        device = model.device
        self.model = model
        self.state = state
        self.sampler = sampler
        self.kv_caches = kv_caches
        self._block_size = block_size

        def ints(size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._input_ids = ints(max_num_tokens, model.index_dtype)
        self._positions = ints(max_num_tokens, model.index_dtype)
        self._slots = ints(max_num_tokens)
        self._seq_lens = ints(max_num_entries)
        self._arrivals = ints(max_num_entries * model.max_kv_heads)
        self._decode_starts = torch.arange(max_num_entries + 1, dtype=torch.int32, device=device)
        self._logits = torch.zeros((max_num_entries, model.vocab_size), dtype=model.dtype, device=device)
        self._ring = SampleRing(
            num_slots=max_steps_in_flight + 1,
            max_num_tokens=max_num_entries,
            device=device,
            verifies=num_speculative_tokens > 0,
        )
        self._num_speculative_tokens = num_speculative_tokens
        self._num_kept = ints(max_num_entries)
        """Of the latest step, for its drafter; what goes to the host is in the ring."""

    def launch(self, step: FixedStep, graphs: StepGraphs | None) -> None:
        """One token of each of the first `size` batch rows, some of which may be padding, or the whole of one
        fresh prompt; as the state describes them. By a graph where there are graphs.

        Leaves logits; where the step samples, also tokens, in the state and for `sampled`.
        """
        self._ring.advance()
        if graphs is None:
            self.run(step)
        else:
            graphs.replay(step)

    def launch_padding(self, step: FixedStep) -> None:
        """A step over padding alone, as a graph of it would run; it changes no request's state."""
        self.set_padding(prompts=step.is_prompt, verifies=step.verifies)
        self.launch(step, None)

    def set_padding(self, *, prompts: bool, verifies: bool = False) -> None:
        """Describe a batch of padding alone in the state, for steps of one kind and any size."""
        if prompts:
            self.state.set_empty_prompt()
        elif verifies:
            self.state.set_draft_padding()
        else:
            self.state.set_decode_batch([], [], len(self._seq_lens))
        self.state.flush()

    def run(self, step: FixedStep) -> None:
        """The launches of such a step, for `launch` and for a capture. Any other caller must call
        `forget_runs` before the next `launch`."""
        size, state = step.size, self.state
        if step.is_prompt:
            inputs = self._inputs(1, size, 0, size, 0, state.query_start, ring=self._ring)
            hidden = self.model.forward(inputs, self.kv_caches, wanted=state.sample_tokens[:1])
            logits = self.model.logits(hidden, out=self._logits[:1])
        else:
            inputs = self._inputs(
                size, size, size, 0, 0, self._decode_starts,
                ring=self._ring, has_drafts=step.verifies, has_long=step.has_long,
            )  # fmt: skip
            logits = self.model.decode(inputs, self.kv_caches, out=self._logits[:size])
        if step.samples and step.verifies:
            self._verify(logits, inputs)
        elif step.samples:
            self.sampler.base.sample_and_append(
                logits,
                idx_mapping=inputs.rows,
                positions=inputs.seq_lens,
                num_computed=state.num_computed,
                ring=self._ring.tokens,
                turn=self._ring.turn,
            )

    def _verify(self, logits: torch.Tensor, inputs: ForwardInputs) -> None:
        """Draw by the sampler's base stage for entries that may be drafts, and update the state."""
        sampler, rows, positions = self.sampler, inputs.rows, inputs.seq_lens
        token_ids = sampler.base.sample(logits, idx_mapping=rows, positions=positions)
        num_kept = self._num_kept[: len(rows)]
        sampler.count_kept(token_ids, rows, positions, self.drafts(len(rows)), out=num_kept)
        update_state(
            rows=rows,
            seq_lens=positions,
            sample_index=None,
            sampled=token_ids,
            num_kept=num_kept,
            num_computed=self.state.num_computed,
            token_ids=self.state.token_ids,
            ring=self._ring.verified,
            turn=self._ring.turn,
        )

    def drafts(self, count: int) -> VerifiedDrafts:
        """Those of the first `count` entries that sample; entries that do not come after all drafts."""
        return VerifiedDrafts(self.state.offsets[:count], self._num_speculative_tokens)

    def forget_runs(self) -> None:
        """Count steps anew after calls of `run` outside `launch`. All earlier results must be read."""
        self._ring.restart()

    def logits(self, count: int) -> torch.Tensor:
        """[count, vocab], what the latest `launch` or `launch_mixed` left."""
        return self._logits[:count]

    def sampled(self, count: int) -> torch.Tensor:
        """[count], the tokens that the latest `launch` with sampling drew.

        They are overwritten once as many later steps were launched as may be under way.
        """
        return self._ring.launched(count)

    def verified(self, count: int) -> torch.Tensor:
        """[count, 2] int32: the same of a `launch` that verified drafts, each with its `num_kept`."""
        return self._ring.launched_verified(count)

    def num_kept(self, count: int) -> torch.Tensor:
        """[count] int32: what the latest step that verified drafts kept, if it sampled in its `launch` or was
        given to `keep`; see `SampledTokens`. The next one overwrites it."""
        return self._num_kept[:count]

    def keep(self, num_kept: torch.Tensor) -> None:
        """Let `num_kept` be these: of a step that did not sample in its `launch`."""
        self._num_kept[: len(num_kept)].copy_(num_kept)

    def decode_places(self, count: int) -> torch.Tensor:
        """[count] int32: the packed index of each entry, where each has one token."""
        return self._decode_starts[:count]

    def single_inputs(self, size: int, *, has_drafts: bool) -> ForwardInputs:
        """What the latest step of fixed form took: `size` entries of one token, some of them drafts where
        `has_drafts`."""
        return self.mixed_inputs(
            size, size, size, 0, 0, query_start=self._decode_starts, has_drafts=has_drafts
        )

    def prompt_inputs(self, size: int) -> ForwardInputs:
        """What the latest step of one fresh prompt of fixed form took."""
        return self.mixed_inputs(1, size, 0, size, 0)

    def decode_positions(self, size: int) -> torch.Tensor:
        """[size]: the position of each row's next token."""
        return self._seq_lens[:size]

    def sample_positions(self, count: int) -> torch.Tensor:
        """[count]: the position that each sampled token of the latest step with drafts will have, as the
        state has it, which may know more than the host."""
        return torch.index_select(self._seq_lens, 0, self.state.sample_entries[:count])

    def update_decodes(self, size: int, sampled: torch.Tensor) -> None:
        """Append a token to each of the first `size` batch rows."""
        update_state(
            rows=self.state.rows[:size],
            seq_lens=self._seq_lens[:size],
            sample_index=None,
            sampled=sampled,
            num_computed=self.state.num_computed,
            token_ids=self.state.token_ids,
        )

    def launch_mixed(
        self,
        batch: int,
        num_tokens: int,
        num_decodes: int,
        max_fresh_len: int,
        max_continued_len: int,
        num_samples: int,
        *,
        chunks: Sequence[RowChunk],
        keep_hidden: bool,
        has_drafts: bool = False,
    ) -> torch.Tensor | None:
        """Any batch, as described in the state. Leaves logits of its `num_samples` sampled entries.

        Returns the hidden states [tokens, hidden] where `keep_hidden`.
        """
        last = self.state.sample_tokens[:num_samples]
        inputs = self._inputs(
            batch,
            num_tokens,
            num_decodes,
            max_fresh_len,
            max_continued_len,
            self.state.query_start,
            chunks=chunks,
            has_drafts=has_drafts,
        )
        hidden = self.model.forward(inputs, self.kv_caches, wanted=None if keep_hidden else last)
        sampled = torch.index_select(hidden, 0, last) if keep_hidden else hidden
        if num_samples:
            self.model.logits(sampled, out=self._logits[:num_samples])
        return hidden if keep_hidden else None

    def update_mixed(self, batch: int, sampled: torch.Tensor, num_kept: torch.Tensor | None = None) -> None:
        """Advance the batch's rows, and append the sampled tokens; num_kept: after verified drafts, what is
        kept."""
        update_state(
            rows=self.state.rows[:batch],
            seq_lens=self._seq_lens[:batch],
            sample_index=self.state.sample_index[:batch],
            sampled=sampled,
            num_kept=num_kept,
            num_computed=self.state.num_computed,
            token_ids=self.state.token_ids,
        )

    def mixed_inputs(
        self,
        batch: int,
        num_tokens: int,
        num_decodes: int,
        max_fresh_len: int,
        max_continued_len: int,
        *,
        chunks: Sequence[RowChunk] = (),
        query_start: torch.Tensor | None = None,
        has_drafts: bool = False,
        has_long: bool = False,
        embedded: torch.Tensor | None = None,
    ) -> ForwardInputs:
        """What the latest step of any kind took; for a drafter, which computes the same tokens."""
        state = self.state
        starts = state.query_start if query_start is None else query_start
        return ForwardInputs(
            input_ids=self._input_ids[:num_tokens],
            positions=self._positions[:num_tokens],
            slots=self._slots[:num_tokens],
            rows=state.rows[:batch],
            query_start=starts[: batch + 1],
            seq_lens=self._seq_lens[:batch],
            block_table=state.block_table,
            arrivals=self._arrivals,
            num_decodes=num_decodes,
            max_fresh_len=max_fresh_len,
            max_continued_len=max_continued_len,
            chunks=chunks,
            has_drafts=has_drafts,
            offsets=state.offsets[:batch] if has_drafts else None,
            max_offset=self._num_speculative_tokens if has_drafts else 0,
            has_long=has_long,
            embedded=embedded,
        )

    def _inputs(
        self,
        batch: int,
        num_tokens: int,
        num_decodes: int,
        max_fresh_len: int,
        max_continued_len: int,
        query_start: torch.Tensor,
        *,
        ring: SampleRing | None = None,
        chunks: Sequence[RowChunk] = (),
        has_drafts: bool = False,
        has_long: bool = False,
    ) -> ForwardInputs:
        """Gather a step's inputs from the state, and go on to the next slot of `ring`."""
        state = self.state
        embedding, embedded = None, None
        if num_tokens == batch == num_decodes:
            # With one token per sequence, what gathers the tokens can gather their embeddings.
            embedding = self.model.embedding
            if embedding is not None:
                embedded = embedding.new_empty((num_tokens, embedding.shape[1]))
        inputs = self.mixed_inputs(
            batch,
            num_tokens,
            num_decodes,
            max_fresh_len,
            max_continued_len,
            chunks=chunks,
            query_start=query_start,
            has_drafts=has_drafts,
            has_long=has_long,
            embedded=embedded,
        )
        prepare_inputs(
            rows=inputs.rows,
            query_start=inputs.query_start,
            num_computed=state.num_computed,
            token_ids=state.token_ids,
            block_table=state.block_table,
            block_size=self._block_size,
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slots=inputs.slots,
            seq_lens=inputs.seq_lens,
            offsets=state.offsets[:batch] if has_drafts else None,
            embedding=embedding,
            hidden=embedded,
            turn=None if ring is None else ring.turn,
            num_turns=0 if ring is None else ring.num_slots,
        )
        return inputs
