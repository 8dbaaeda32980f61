"""Runner V2: dense Qwen3, Llama and Mistral on one GPU, at speed.

The host describes a step (which rows, how many tokens), never its content: tokens live on the device, so the
next step can be launched before the last one's tokens are read.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.interface import GrammarOutput, KVCacheSpec, PendingOutput, Runner, SchedulerOutput
from dodona.runners.limits import Limits
from dodona.runners.v2 import rehearsal
from dodona.runners.v2.batches import Batch
from dodona.runners.v2.graphs import FixedSizes, FixedStep, StepGraphs, decode_sizes, prompt_sizes
from dodona.runners.v2.loading.loaded import Loaded, load, read_weights
from dodona.runners.v2.loading.memory import measure_available_memory
from dodona.runners.v2.outputs import AsyncOutput, StepResults
from dodona.runners.v2.ready import Ready, make_ready
from dodona.runners.v2.sampling.prompt_logprobs import PromptHidden, compute_prompt_logprobs
from dodona.runners.v2.sampling.stages import example_params


@dataclass(frozen=True, slots=True, eq=False)
class _Executed:
    """A batch that waits for `sample_tokens`."""

    batch: Batch
    prompt: PromptHidden | None


class V2Runner(Runner):
    """The fast runner. Two steps may be under way: the second is launched before the first one's tokens are
    read."""

    name = "v2"
    max_steps_in_flight = 2
    request_features = frozenset({"structured-outputs"})
    warm_up_params = example_params(grammar=False)

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits) -> None:
        super().__init__(config, model, limits)
        self._device = torch.device(limits.device)
        self._loaded: Loaded | None = None
        self._ready: Ready | None = None
        self._executed: _Executed | None = None
        self._under_way: deque[AsyncOutput] = deque()
        """Results of the latest steps, the oldest first; those at its beginning may have been read."""

    # -- life
    # ------------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> Loaded:
        """The model. Raises RuntimeError before `load_model`."""
        if self._loaded is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._loaded

    @property
    def ready(self) -> Ready:
        """What steps work with. Raises RuntimeError before `initialize_kv_cache`."""
        if self._ready is None:
            raise RuntimeError("there is no KV cache: call initialize_kv_cache first")
        return self._ready

    def load_model(self) -> None:
        """Read the weights onto the device.

        Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError
        where config.json or the weights are not as they must be.
        """
        self._loaded = load(self.config, self.model_info, self.limits)

    def reload_weights(self) -> None:
        """Read the weights again, in place: captured graphs see the new ones. KV computed before belongs to
        the old."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        read_weights(self.loaded, self.config)

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """What a KV block holds over all layers."""
        return self.loaded.spec.kv_cache_spec(self.limits.block_size)

    def determine_available_memory(self) -> int:
        """Bytes for KV blocks: what is left beside the largest steps, which are run here.

        Never more than all rows at full length take.
        """
        limits = self.limits
        self.initialize_kv_cache(1)
        sizes = self._sizes_to_capture()
        largest = [] if sizes is None else [
            FixedStep(sizes.decodes[-1], True), FixedStep(sizes.prompts[-1], True, is_prompt=True)
        ]  # fmt: skip
        available = measure_available_memory(
            self._device,
            utilization=limits.gpu_memory_utilization,
            largest_step=lambda: self._rehearse(
                rehearsal.largest_step(limits.max_num_seqs, limits.max_num_batched_tokens)
            ),
            captured=[partial(self._launch_padding, step) for step in largest],
        )
        self._release_ready()
        blocks = limits.max_num_seqs * -(-limits.max_model_len // limits.block_size)
        return min(available, blocks * self.get_kv_cache_spec().bytes_per_block)

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` KV blocks, in place of those allocated before, and what steps work in.

        Args:
            num_blocks: number of blocks.
            max_model_len: most tokens of a sequence, for which the requests' state is allocated; None: that
                of the limits.

        Raises ValueError where the requests' state would be too large to index.
        """
        self._release_ready()
        self._ready = make_ready(
            self.loaded,
            self.limits,
            num_blocks=num_blocks,
            max_model_len=self.limits.max_model_len if max_model_len is None else max_model_len,
            max_steps_in_flight=self.max_steps_in_flight,
            device=self._device,
        )

    def capture_graphs(self) -> None:
        """Compile what steps of all kinds need, and capture those of fixed form as CUDA graphs, unless
        `enforce_eager`.

        Nothing on a CPU.
        """
        if self._device.type != "cuda":
            return
        self._rehearse_all()
        sizes = self._sizes_to_capture()
        if sizes is None:
            return
        ready = self.ready
        with torch.inference_mode():
            graphs = StepGraphs(sizes)
            for prompts in (False, True):
                ready.steps.set_padding(prompts=prompts)
                graphs.capture(ready.steps.run, prompts=prompts)
            ready.steps.forget_runs()
        self._ready = replace(ready, graphs=graphs)

    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""
        self._executed = None
        self._under_way.clear()
        self._ready = None
        self._loaded = None
        if self._device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()
            torch.cuda.empty_cache()

    # -- steps
    # -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Launch one step: what changed in the state, then the forward pass. Never waits for the device.

        Raises RuntimeError where `max_steps_in_flight` results were not read: the next step's tokens would
        overwrite theirs.
        """
        ready = self.ready
        if self._executed is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        self._check_under_way()
        batch = ready.builder.build(scheduler_output, ready.graphs)
        self._executed = _Executed(batch, batch.launch(ready.steps, ready.graphs))

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Launch what is left of the step (sampling, state update) and the copies of its results."""
        executed, self._executed = self._executed, None
        if executed is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        ready, batch, prompt = self.ready, executed.batch, executed.prompt
        sampled = batch.sample(ready.steps, grammar_output)
        prompt_logprobs = None
        if prompt is not None:
            prompt_logprobs = compute_prompt_logprobs(
                prompt, model=self.loaded.model, token_ids=ready.state.token_ids
            )
        results = StepResults(batch.rows, sampled.token_ids, sampled.logprobs, prompt_logprobs)
        pending = AsyncOutput(results, ready.copier)
        self._under_way.append(pending)
        return pending

    def _check_under_way(self) -> None:
        while self._under_way and self._under_way[0].is_read:
            self._under_way.popleft()
        if len(self._under_way) >= self.max_steps_in_flight:
            raise RuntimeError(
                f"{len(self._under_way)} steps are under way, and no more than {self.max_steps_in_flight} "
                "may be: read the result of the oldest before the next execute_model"
            )

    # -- parts
    # -----------------------------------------------------------------------------------------------------

    def _release_ready(self) -> None:
        """Give back the memory of the KV cache and of all that steps work in, so that the next fits."""
        if self._ready is None:
            return
        self._ready = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _rehearse_all(self) -> None:
        """Run a step of each kind, so that no request waits for a compiler."""
        limits = self.limits
        for step in rehearsal.small_steps(limits.max_num_seqs, limits.max_num_batched_tokens):
            self._rehearse(step)
        if self._sizes_to_capture() is None:  # else a capture runs every size
            for size in decode_sizes(limits.max_num_seqs):
                self._launch_padding(FixedStep(size, True))

    def _rehearse(self, step: rehearsal.RehearsalStep) -> None:
        rehearsal.run_step(
            self,
            step,
            max_model_len=self.ready.max_model_len,
            vocab_size=self.loaded.spec.vocab_size,
            block_size=self.limits.block_size,
        )

    @torch.inference_mode()
    def _launch_padding(self, step: FixedStep) -> None:
        self.ready.steps.launch_padding(step)

    def _sizes_to_capture(self) -> FixedSizes | None:
        """Sizes of the steps that will be captured, or None for no graphs."""
        if self._device.type != "cuda" or self.config.model_config.enforce_eager:
            return None
        longest = min(self.limits.max_num_batched_tokens, self.ready.max_model_len)
        return FixedSizes(decode_sizes(self.limits.max_num_seqs), prompt_sizes(longest))
