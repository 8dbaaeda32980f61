"""Runner V2: dense Qwen3, Llama and Mistral on one GPU, at speed.

The host describes a step (which rows, how many tokens), never its content: tokens live on the device, so the
next step can be launched before the last one's tokens are read.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import triton

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.hub import resolve_model
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.interface import (
    GrammarOutput,
    KVCacheSpec,
    PendingOutput,
    Runner,
    SchedulerOutput,
)
from dodona.runners.limits import resolve_device_type, resolve_limits, resolve_max_num_batched_tokens
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2 import capabilities, rehearsal
from dodona.runners.v2.graphs import FixedSizes, FixedStep, StepGraphs, decode_sizes, prompt_sizes
from dodona.runners.v2.loading.loader import fill_randomly, load_safetensors
from dodona.runners.v2.loading.memory import measure_available_memory
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.registry import checkpoint_views, make_spec
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.v2.models.weights import allocate_weights
from dodona.runners.v2.outputs import AsyncOutput, HostCopier
from dodona.runners.v2.sampling.prompt_logprobs import PromptLogprobs, compute_prompt_logprobs
from dodona.runners.v2.sampling.sampler import NOTHING, V2Sampler
from dodona.runners.v2.state import RequestState
from dodona.runners.v2.step import StepRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dodona.oracle.decide.verdict import Verdict


@dataclass(frozen=True, slots=True, eq=False)
class _Executed:
    """A forward pass that waits for `sample_tokens`."""

    step: SchedulerOutput
    sampled_rows: Sequence[int]
    """State rows that sample, in batch order."""
    fixed: FixedStep | None
    """The step of fixed form that it was run as, or None for other batches."""
    hidden: torch.Tensor | None
    logits: torch.Tensor | None
    """What to sample from; None where the step has sampled and updated the state already."""
    prompt_plan: Mapping[int, tuple[int, int, int, int]]


class V2Runner(Runner):
    """The fast runner. Two steps may be under way: the second is launched before the first one's tokens are
    read."""

    name: ClassVar[str] = "v2"
    max_steps_in_flight: ClassVar[int] = 2
    request_features: ClassVar[frozenset[str]] = frozenset({"structured-outputs"})

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self._max_num_seqs = self.config.scheduler_config.max_num_seqs
        self._device = torch.device(resolve_device_type(self.config))
        self._max_num_tokens = resolve_max_num_batched_tokens(self.config, self._device.type)
        self._spec: ModelSpec | None = None
        self._model: DenseModel | None = None
        self._state: RequestState | None = None
        self._sampler: V2Sampler | None = None
        self._steps: StepRunner | None = None
        self._graphs: StepGraphs | None = None
        self._copier: HostCopier | None = None
        self._prompt_logprobs = PromptLogprobs()
        self._base_stage_only = False
        """Whether no row of the decode batch asks the sampler for more than its base stage."""
        self._executed: _Executed | None = None
        self._under_way: deque[AsyncOutput] = deque()
        """Results of the latest steps, the oldest first; those at its beginning may have been read."""

    # -- life
    # ------------------------------------------------------------------------------------------------------

    def load_model(self) -> None:
        """Read the weights onto the device.

        Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError
        where config.json or the weights are not as they must be.
        """
        model_config = self.config.model_config
        info = ModelInfo.load(resolve_model(model_config.model, revision=model_config.revision))
        lacking = capabilities.check_supported(
            self.config, info, self._environment(), interpreted=_interpreted() and self._device.type == "cpu"
        )
        if lacking:
            raise UnsupportedConfiguration.lacking(self.name, *lacking)
        spec = make_spec(info, resolve_limits(self.config, info))
        weights = allocate_weights(spec, self._device)
        self._spec = spec
        self._model = DenseModel(spec, weights)
        self._read_weights()
        self._state = RequestState(
            max_num_seqs=self._max_num_seqs,
            max_model_len=spec.max_model_len,
            block_size=self.config.cache_config.block_size,
            device=self._device,
        )
        self._sampler = V2Sampler(
            max_num_seqs=self._max_num_seqs, vocab_size=spec.vocab_size, token_ids=self._state.token_ids
        )
        self._copier = HostCopier(self._device)

    def reload_weights(self) -> None:
        """Read the weights again, in place: captured graphs see the new ones. KV computed before belongs to
        the old."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._read_weights()

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """What a KV block holds over all layers."""
        return self._loaded_spec().kv_cache_spec(self.config.cache_config.block_size)

    def determine_available_memory(self) -> int:
        """Bytes for KV blocks: `kv_cache_memory_bytes`, or what is left beside the largest steps, which are
        run here.

        Never more than all rows at full length take.
        """
        cache_config, spec = self.config.cache_config, self._loaded_spec()
        if cache_config.kv_cache_memory_bytes is not None:
            return cache_config.kv_cache_memory_bytes
        self.initialize_kv_cache(1)
        available = measure_available_memory(
            self._device,
            utilization=cache_config.gpu_memory_utilization,
            largest_step=lambda: self._rehearse(
                rehearsal.largest_prompts(self._max_num_seqs, self._max_num_tokens)
            ),
            captured=[partial(self._run_padding, step) for step in self._largest_captured()],
        )
        self._steps = None
        self._prompt_logprobs = PromptLogprobs()
        block_size = cache_config.block_size
        blocks = self._max_num_seqs * -(-spec.max_model_len // block_size)
        return min(available, blocks * self.get_kv_cache_spec().bytes_per_block)

    def initialize_kv_cache(self, num_blocks: int) -> None:
        """Allocate `num_blocks` KV blocks, in place of those allocated before, and the buffers that steps
        work in."""
        spec = self._loaded_spec()
        assert self._model is not None
        assert self._state is not None
        assert self._sampler is not None
        self._steps = None
        self._graphs = None
        shape = (num_blocks, 2, spec.num_kv_heads, self.config.cache_config.block_size, spec.head_size)
        # One allocation per layer: torch zeroes each once, and a layer's blocks are contiguous.
        kv_caches = [
            torch.zeros(shape, dtype=spec.dtype, device=self._device) for _ in range(spec.num_layers)
        ]
        self._steps = StepRunner(
            model=self._model,
            state=self._state,
            sampler=self._sampler,
            kv_caches=kv_caches,
            max_num_seqs=self._max_num_seqs,
            max_num_tokens=max(self._max_num_tokens, self._max_num_seqs),
            max_steps_in_flight=self.max_steps_in_flight,
        )

    def capture_graphs(self) -> None:
        """Compile what steps of all kinds need, and capture those of fixed form as CUDA graphs, unless
        `enforce_eager`.

        Nothing on a CPU.
        """
        if self._device.type != "cuda":
            return
        steps = self._ready()
        self._rehearse_all()
        sizes = self._sizes_to_capture()
        if sizes is None:
            return
        with torch.inference_mode():
            graphs = StepGraphs(sizes)
            for prompts in (False, True):
                self._set_padding(prompts=prompts)
                graphs.capture(steps.run, prompts=prompts)
            steps.forget_runs()
        self._graphs = graphs

    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""
        self._executed = None
        self._under_way.clear()
        self._graphs = None
        self._steps = None
        self._sampler = None
        self._state = None
        self._copier = None
        self._model = None
        self._spec = None
        self._prompt_logprobs = PromptLogprobs()
        if self._device.type == "cuda" and torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()

    # -- steps
    # -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Launch one step: what changed in the state, then the forward pass. Never waits for the device.

        Raises RuntimeError where `max_steps_in_flight` results were not read: the next step's tokens would
        take the place of theirs.
        """
        step, steps = scheduler_output, self._ready()
        state, sampler = self._state, self._sampler
        assert state is not None
        assert sampler is not None
        if self._executed is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        self._check_under_way()
        self._prompt_logprobs.remove(step.freed_rows)
        for request in step.new_requests:
            state.add_request(request)
            sampler.add_request(request)
            self._prompt_logprobs.add_request(request)
        for row, block_ids in step.new_blocks:
            state.append_blocks(row, block_ids)
        batch = len(step.rows)
        fixed: FixedStep | None = None
        num_samples = batch
        if (size := self._decode_size(step)) is not None:
            changed = state.set_decode_batch(step.rows, step.num_computed_tokens, size)
            if changed or step.new_requests:
                self._base_stage_only = sampler.stages(step.rows) == NOTHING
            fixed = FixedStep(size, self._base_stage_only)
        elif batch:
            num_samples = state.set_mixed_batch(
                step.rows, step.num_computed_tokens, step.num_tokens, step.samples
            )
            if (size := self._prompt_size(step)) is not None:
                fixed = FixedStep(size, sampler.stages(step.rows) == NOTHING, is_prompt=True)
        state.flush()
        if step.new_requests:
            sampler.apply_staged_writes()
        if not batch:
            self._executed = _Executed(step, (), None, None, None, {})
            return
        if fixed is not None:
            steps.launch(fixed, self._graphs)
            logits = None if fixed.samples else steps.logits(batch)
            self._executed = _Executed(step, step.rows, fixed, None, logits, {})
            return
        plan = self._prompt_logprobs.plan(step)
        lengths = step.num_tokens[step.num_decodes :]
        contexts = step.num_computed_tokens[step.num_decodes :]
        chunks = list(zip(lengths, contexts, strict=True))
        hidden, logits = steps.mixed(
            batch,
            step.total_tokens,
            step.num_decodes,
            max((length for length, context in chunks if not context), default=0),
            max((length for length, context in chunks if context), default=0),
            num_samples,
            keep_hidden=bool(plan),
        )
        sampled_rows = [row for row, samples in zip(step.rows, step.samples, strict=True) if samples]
        self._executed = _Executed(step, sampled_rows, None, hidden, logits, plan)

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Launch what is left of the step (sampling, state update) and the copies of its results."""
        executed, self._executed = self._executed, None
        if executed is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        steps, state, sampler, copier = self._ready(), self._state, self._sampler, self._copier
        assert state is not None
        assert sampler is not None
        assert copier is not None
        rows, count = executed.sampled_rows, len(executed.sampled_rows)
        logprobs, logprob_rows, logprob_counts = None, (), ()
        given, given_counts = None, ()
        if executed.logits is None:
            token_ids = steps.sampled(count)
        else:
            token_ids = steps.sampled(0)
            decodes = executed.fixed is not None and not executed.fixed.is_prompt
            if count:
                output = sampler.sample(
                    executed.logits,
                    idx_mapping=(state.rows if decodes else state.sample_rows)[:count],
                    positions=steps.decode_positions(count) if decodes else state.sample_positions[:count],
                    rows=rows,
                    grammar_output=grammar_output,
                )
                token_ids, logprobs = output.token_ids, output.logprobs
                logprob_rows = tuple(rows[i] for i in output.logprob_rows)
                logprob_counts = output.logprob_counts
                given, given_counts = output.given_logprobs, output.given_counts
            if decodes:
                steps.update_decodes(count, token_ids)
            else:
                steps.update_mixed(len(executed.step.rows), token_ids)
        prompt, ranges = None, ()
        if executed.hidden is not None:
            prompt, ranges = compute_prompt_logprobs(
                executed.prompt_plan, model=steps.model, hidden=executed.hidden, token_ids=state.token_ids
            )
        sources = [token_ids]
        for tensors in (logprobs, given, prompt):
            if tensors is not None:
                sources += [tensors.token_ids, tensors.logprobs, tensors.ranks]
        copies, event = copier.copy(sources)
        first, *rest = copies
        host = [
            type(t)(*[rest.pop(0) for _ in range(3)]) if t is not None else None
            for t in (logprobs, given, prompt)
        ]
        pending = AsyncOutput(
            rows=rows,
            token_ids=first,
            logprobs=host[0],
            logprob_rows=logprob_rows,
            logprob_counts=logprob_counts,
            given_logprobs=host[1],
            given_counts=given_counts,
            prompt_logprobs=host[2],
            prompt_ranges=ranges,
            event=event,
            sources=sources,
        )
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

    def _decode_size(self, step: SchedulerOutput) -> int | None:
        """Entries to run a decode-only batch with, padding included; None for other batches."""
        batch = len(step.rows)
        if not batch or step.num_decodes != batch:
            return None
        if self._graphs is None:
            return batch
        return self._graphs.sizes.for_decodes(batch)

    def _prompt_size(self, step: SchedulerOutput) -> int | None:
        """Tokens to run a step of one fresh prompt with, padding included, where a graph can; else None."""
        if self._graphs is None or len(step.rows) != 1 or step.num_computed_tokens[0] or not step.samples[0]:
            return None
        if self._prompt_logprobs.plan(step):  # it takes the hidden states of all tokens
            return None
        return self._graphs.sizes.for_prompt(step.num_tokens[0])

    # -- parts
    # -----------------------------------------------------------------------------------------------------

    def _environment(self) -> Environment:
        if self._device.type != "cuda":
            return Environment(has_triton=False, platform="cpu")
        major, minor = torch.cuda.get_device_capability(self._device)
        return Environment(has_triton=True, platform="cuda", compute_capability=10 * major + minor)

    def _read_weights(self) -> None:
        spec, model_config = self._loaded_spec(), self.config.model_config
        assert self._model is not None
        views = checkpoint_views(spec, self._model.weights)
        if self.config.load_config.load_format == "dummy":
            fill_randomly(views, seed=model_config.seed)
            return
        path = resolve_model(model_config.model, revision=model_config.revision, weights=True)
        load_safetensors(path, views, tied=spec.tie_word_embeddings)

    def _loaded_spec(self) -> ModelSpec:
        if self._spec is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._spec

    def _ready(self) -> StepRunner:
        if self._steps is None:
            raise RuntimeError("there is no KV cache: call initialize_kv_cache first")
        return self._steps

    def _rehearse_all(self) -> None:
        """Run a step of each kind, so that no request waits for a compiler."""
        for decodes, prompts, params, context in rehearsal.small_steps(
            self._max_num_seqs, self._max_num_tokens
        ):
            self._rehearse(prompts, decodes, params, context)
        self._prompt_logprobs = PromptLogprobs()
        if self._sizes_to_capture() is None:  # what is captured is run for that
            for size in decode_sizes(self._max_num_seqs):
                self._run_padding(FixedStep(size, True))

    def _rehearse(
        self,
        prompts: Sequence[int],
        decodes: int = 0,
        params: Sequence[SamplingParams] = (rehearsal.HEAVIEST,),
        context: int = 0,
    ) -> None:
        spec = self._loaded_spec()
        rehearsal.run_step(
            self,
            prompts,
            decodes=decodes,
            params=params,
            context=context,
            max_model_len=spec.max_model_len,
            vocab_size=spec.vocab_size,
            block_size=self.config.cache_config.block_size,
        )

    def _sizes_to_capture(self) -> FixedSizes | None:
        """Sizes of the steps that will be captured, or None for no graphs."""
        if self._device.type != "cuda" or self.config.model_config.enforce_eager:
            return None
        longest = min(self._max_num_tokens, self._loaded_spec().max_model_len)
        return FixedSizes(decode_sizes(self._max_num_seqs), prompt_sizes(longest))

    def _largest_captured(self) -> list[FixedStep]:
        sizes = self._sizes_to_capture()
        if sizes is None:
            return []
        return [FixedStep(sizes.decodes[-1], True), FixedStep(sizes.prompts[-1], True, is_prompt=True)]

    def _set_padding(self, *, prompts: bool) -> None:
        """Describe a batch of padding alone, for a step of fixed form that touches no request."""
        state = self._state
        assert state is not None
        if prompts:
            state.set_empty_prompt()
        else:
            state.set_decode_batch([], [], self._max_num_seqs)
        state.flush()

    @torch.inference_mode()
    def _run_padding(self, step: FixedStep) -> None:
        """A step over padding alone, as a graph of it would run."""
        self._set_padding(prompts=step.is_prompt)
        self._ready().launch(step, None)


def _interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)
