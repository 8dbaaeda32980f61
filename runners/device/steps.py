"""The steps of one model from state on the device: their memory, rehearsal and graphs, and those under way.

The host describes a step (which rows, how many tokens), never its content: tokens live on the device, so the
next step can be launched before the last one's tokens are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from dodona.runners.device import rehearsal
from dodona.runners.device.batches import Batch
from dodona.runners.device.drafting import DeviceDrafting
from dodona.runners.device.graphs import (
    KINDS,
    FixedSizes,
    FixedStep,
    StepGraphs,
    decode_sizes,
    draft_sizes,
    prompt_sizes,
)
from dodona.runners.device.memory import measure_available_memory
from dodona.runners.device.model import StepModel
from dodona.runners.device.outputs import AsyncDrafts, AsyncOutput, StepResults, WithDeviceDrafts
from dodona.runners.device.ready import Ready, make_ready, max_entries
from dodona.runners.device.sampling.prompt_logprobs import PromptHidden, compute_prompt_logprobs
from dodona.runners.interface import GrammarOutput, PendingOutput, SchedulerOutput
from dodona.runners.limits import Limits
from dodona.runners.phases import phase

MAX_STEPS_IN_FLIGHT = 2
"""The second step is launched before the first one's tokens are read."""


@dataclass(frozen=True, slots=True, eq=False)
class _Executed:
    """A batch that waits for `sample`."""

    batch: Batch
    prompt: PromptHidden | None


class DeviceSteps:
    """Runs steps of `model`.

    Args:
        model: on a GPU, or on a CPU in Triton's interpreter.
        limits: of the configuration.
        capture: whether steps of fixed form are to be captured as CUDA graphs.
        num_speculative_tokens: most drafts that a row verifies in a step.
        drafting: drafts on the device after each step; None: whoever drafts reads the results. Then, with any
            drafts, one step is under way at a time, since which of them were accepted decides about the next.
    """

    def __init__(
        self,
        model: StepModel,
        limits: Limits,
        *,
        capture: bool,
        num_speculative_tokens: int = 0,
        drafting: DeviceDrafting | None = None,
    ) -> None:
        self.model = model
        self.limits = limits
        self.num_speculative_tokens = num_speculative_tokens
        reads_first = num_speculative_tokens > 0 and drafting is None
        self.max_steps_in_flight = 1 if reads_first else MAX_STEPS_IN_FLIGHT
        self._drafting = drafting
        self._device = model.device
        self._capture = capture and model.device.type == "cuda"
        self._ready: Ready | None = None
        self._executed: _Executed | None = None
        self._under_way: deque[AsyncOutput] = deque()
        """Results of the latest steps, the oldest first; those at its beginning may have been read."""

    @property
    def ready(self) -> Ready:
        """What steps work with. Raises RuntimeError before `initialize`."""
        if self._ready is None:
            raise RuntimeError("there is no KV cache: call initialize_kv_cache first")
        return self._ready

    def use_graphs(self, graphs: StepGraphs | None) -> None:
        """Run steps of fixed form by `graphs`, or launch by launch where None."""
        self._ready = replace(self.ready, graphs=graphs)

    def determine_available_memory(self, bytes_per_block: int) -> int:
        """Bytes for KV blocks of `bytes_per_block`: what is left beside the largest steps, which are run
        here, and the graphs.

        Never more than all rows at full length take.
        """
        limits = self.limits
        self.initialize(1)
        sizes = self._sizes_to_capture()
        largest = [] if sizes is None else [
            *(FixedStep(size, True) for size in sizes.decodes[-1:]),
            *(FixedStep(size, True, is_prompt=True) for size in sizes.prompts[-1:]),
            *(FixedStep(size, True, verifies=True) for size in sizes.drafts[-1:]),
        ]  # fmt: skip
        available = measure_available_memory(
            self._device,
            limits=limits,
            largest_step=self._rehearse_largest,
            captured=[
                *(partial(self._launch_padding, step) for step in largest),
                *(partial(self._draft_padding, step.size) for step in largest if step.verifies),
            ],
        )
        self.release()
        blocks = limits.max_num_seqs * -(-limits.max_model_len // limits.block_size)
        return min(available, blocks * bytes_per_block)

    def initialize(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` KV blocks, in place of those allocated before, and what steps work in.

        Args:
            num_blocks: number of blocks.
            max_model_len: most tokens of a sequence, for which the requests' state is allocated; None: that
                of the limits.

        Raises ValueError where the requests' state would be too large to index.
        """
        self.release()
        self._ready = make_ready(
            self.model,
            self.limits,
            num_blocks=num_blocks,
            max_model_len=self.limits.max_model_len if max_model_len is None else max_model_len,
            max_steps_in_flight=self.max_steps_in_flight,
            num_speculative_tokens=self.num_speculative_tokens,
            drafting=self._drafting,
        )

    def release(self) -> None:
        """Give back the memory of the KV cache and of all that steps work in."""
        self._executed = None
        self._under_way.clear()
        if self._ready is None:
            return
        self._ready = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def release_kv_cache(self) -> tuple[int, int | None]:
        """`release`; returns what `initialize` is to be given for the same again."""
        size = self.ready.num_blocks, self.ready.max_model_len
        self.release()
        return size

    def capture_graphs(self) -> None:
        """Compile what steps of all kinds need, and capture those of fixed form as CUDA graphs where they are
        to be captured.

        Nothing on a CPU.
        """
        if self._device.type != "cuda":
            return
        sizes = self._sizes_to_capture()
        if sizes is None:
            self.rehearse_all()
            return
        with phase("rehearse forward passes"):
            self._rehearse_forward()
        ready = self.ready
        with phase("capture graphs"), torch.inference_mode():
            graphs = StepGraphs(sizes)
            for kind in KINDS:
                ready.steps.set_padding(prompts=kind.is_prompt, verifies=kind.verifies)
                long_sizes = self._long_sizes(sizes.of(kind), kind)
                graphs.capture(ready.steps.run, kind, long_sizes=long_sizes)
                if kind.verifies and ready.drafts is not None:
                    graphs.capture_drafter(ready.drafts.run)
            ready.steps.forget_runs()
        self.use_graphs(graphs)
        with phase("rehearse the sampler by graphs"):
            self._rehearse_sampler()

    # -- steps
    # -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def execute(self, scheduler_output: SchedulerOutput) -> None:
        """Launch one step: what changed in the state, then the forward pass. Never waits for the device.

        Raises RuntimeError where `MAX_STEPS_IN_FLIGHT` results were not read: the next step's tokens would
        overwrite theirs.
        """
        ready = self.ready
        if self._executed is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        self._check_under_way()
        batch = ready.builder.build(scheduler_output, ready.graphs)
        self._executed = _Executed(batch, batch.launch(ready.steps, ready.graphs))

    @torch.inference_mode()
    def sample(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Launch what is left of the step (sampling, state update) and the copies of its results."""
        executed, self._executed = self._executed, None
        if executed is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        ready, batch, prompt = self.ready, executed.batch, executed.prompt
        sampled = batch.sample(ready.steps, grammar_output)
        prompt_logprobs = None
        if prompt is not None:
            prompt_logprobs = compute_prompt_logprobs(
                prompt, model=self.model, token_ids=ready.state.token_ids
            )
        results = StepResults(
            batch.rows,
            sampled.token_ids,
            sampled.logprobs,
            prompt_logprobs,
            batch.drafts,
            sampled.num_kept,
        )
        pending = AsyncOutput(results, ready.copier)
        self._under_way.append(pending)
        if ready.drafts is None:
            return pending
        # The host plans the next step while the device drafts. It asks for drafts that a grammar must allow.
        proposed = batch.propose(ready.steps, ready.drafts, sampled, ready.graphs)
        if proposed is None:
            return pending
        ids = None if grammar_output is None else AsyncDrafts(proposed.clone(), ready.copier)
        return WithDeviceDrafts(pending, proposed.shape[1], ids)

    def _check_under_way(self) -> None:
        while self._under_way and self._under_way[0].is_read:
            self._under_way.popleft()
        if len(self._under_way) >= self.max_steps_in_flight:
            raise RuntimeError(
                f"{len(self._under_way)} steps are under way, and no more than {self.max_steps_in_flight} "
                "may be: read the result of the oldest before the next execute_model"
            )

    # -- rehearsal
    # -----------------------------------------------------------------------------------------------------

    def rehearse_all(self) -> None:
        """Run a step of each kind launch by launch, so that no request waits for a compiler."""
        self._rehearse_forward()
        self._rehearse_sampler()
        decodes = decode_sizes(self.limits.max_num_seqs), FixedStep(0, True)
        for sizes, kind in (decodes, (self._draft_sizes(), FixedStep(0, True, verifies=True))):
            for size in sizes:
                self._launch_padding(kind._replace(size=size))
            for size in self._long_sizes(sizes, kind):
                self._launch_padding(kind._replace(size=size, has_long=True))

    def _rehearse_forward(self) -> None:
        for step in rehearsal.forward_steps(self.limits.max_num_seqs, self.limits.max_num_batched_tokens):
            self.rehearse(step)

    def _rehearse_sampler(self) -> None:
        limits = self.limits
        sizes = limits.max_num_seqs, limits.max_num_batched_tokens, self.num_speculative_tokens
        for step in rehearsal.sampling_steps(*sizes):
            self.rehearse(step)

    def _rehearse_largest(self) -> None:
        limits = self.limits
        self.rehearse(rehearsal.largest_step(limits.max_num_seqs, limits.max_num_batched_tokens))
        if self.num_speculative_tokens:
            self.rehearse(
                rehearsal.largest_draft_step(
                    limits.max_num_seqs, limits.max_num_batched_tokens, self.num_speculative_tokens
                )
            )
        if not self.model.pads_prompts:  # it computes each prompt by itself
            self.rehearse(rehearsal.RehearsalStep([limits.max_num_batched_tokens]))

    def rehearse(self, step: rehearsal.RehearsalStep) -> None:
        """Run a step of requests that no user can have, and read its result."""
        grammars = rehearsal.grammars_of(step, self.model.vocab_size)
        self.execute(
            rehearsal.scheduler_output(
                step, max_model_len=self.ready.max_model_len, block_size=self.limits.block_size
            )
        )
        self.sample(grammars).result()

    @torch.inference_mode()
    def _launch_padding(self, step: FixedStep) -> None:
        self.ready.steps.launch_padding(step)

    @torch.inference_mode()
    def _draft_padding(self, size: int) -> None:
        """What drafts on the device after a step of padding alone."""
        if self.ready.drafts is not None:
            self.ready.drafts.run(size)

    def _sizes_to_capture(self) -> FixedSizes | None:
        """Sizes of the steps that will be captured, or None for no graphs."""
        if not self._capture:
            return None
        longest = min(self.limits.max_num_batched_tokens, self.ready.max_model_len)
        prompts = prompt_sizes(longest) if self.model.pads_prompts else ()
        return FixedSizes(decode_sizes(self.limits.max_num_seqs), prompts, self._draft_sizes())

    def _long_sizes(self, sizes: Sequence[int], kind: FixedStep) -> list[int]:
        """Those for which a sequence may be so long that the step is launched in another way."""
        if kind.is_prompt:
            return []
        found = []
        for size in sizes:
            long_context = self.model.long_context(size, verifies=kind.verifies)
            if long_context is not None and long_context < self.ready.max_model_len:
                found.append(size)
        return found

    def _draft_sizes(self) -> tuple[int, ...]:
        """Entries of the steps of fixed form that verify drafts."""
        if not self.num_speculative_tokens:
            return ()
        return draft_sizes(
            self.limits.max_num_seqs,
            self.num_speculative_tokens,
            max_entries(self.limits, self.num_speculative_tokens),
        )
