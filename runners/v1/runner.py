"""Runner V1: any Hugging Face causal LM by transformers' own code, with paged KV, on CPU and GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

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
    StepOutput,
    TokenLogprobs,
)
from dodona.runners.limits import resolve_max_model_len, resolve_max_num_batched_tokens
from dodona.runners.sampling import reference as sampling
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1 import capabilities, loading
from dodona.runners.v1.batch_state import BatchState
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.memory import measure_available_memory
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.self_check import SelfCheck, self_check
from dodona.runners.v1.step_layout import MAX_GATHERED_TOKENS, StepLayout, to_device

if TYPE_CHECKING:
    import numpy.typing as npt

    from dodona.oracle.decide.verdict import Verdict


@dataclass(frozen=True, slots=True)
class _Done:
    """A step whose output is on the host already."""

    output: StepOutput

    def result(self) -> StepOutput:
        """The output; never waits."""
        return self.output


@dataclass(frozen=True, slots=True)
class _Executed:
    """A forward pass that waits for `sample_tokens`."""

    logits: torch.Tensor
    """[n, vocab] at the positions that `wanted` lists."""
    wanted: Sequence[_Wanted]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which of a step's logits are one row's: those of prompt positions, then the one to sample from."""

    row: int
    prompt_targets: tuple[int, ...]
    """The prompt tokens that follow the positions asked for."""
    samples: bool


class V1Runner(Runner):
    """The general runner: one step at a time, each read to its end before the next begins."""

    name: ClassVar[str] = "v1"
    max_steps_in_flight: ClassVar[int] = 1
    request_features: ClassVar[frozenset[str]] = frozenset({"structured-outputs"})

    def __init__(self, verdict: Verdict) -> None:
        self.config = verdict.config
        self.device: torch.device = capabilities.choose_device(self.config)
        self.check: SelfCheck | None = None
        """What the self-check at load found."""
        self._model: PackedModel | None = None
        self._max_model_len = 0
        self._cache: PagedKVCache | None = None
        self._batch = BatchState()
        self._executed: _Executed | None = None

    def load_model(self) -> None:
        """Read the weights, record the attention calls and run the self-check.

        Raises UnsupportedConfiguration naming each feature V1 lacks (nothing is loaded then), or why this
        model's paged path can't be trusted; ConfigError where the weights are not those of config.json.
        """
        model_config = self.config.model_config
        path = resolve_model(model_config.model, revision=model_config.revision)
        info = ModelInfo.load(path)
        lacking = capabilities.check_supported(self.config, info, _machine())
        if lacking:
            raise UnsupportedConfiguration.lacking(self.name, *lacking)
        self._max_model_len = resolve_max_model_len(self.config, info)
        model = PackedModel(self._make_model(self.device), compiled=capabilities.compiles(self.config))
        self.check = self_check(model, max_model_len=self._max_model_len)
        self._model = model

    def reload_weights(self) -> None:
        """Read the weights again, in place. KV computed before belongs to the old weights."""
        # Random weights depend on the device that draws them.
        dummy = self.config.load_config.load_format == "dummy"
        fresh = self._make_model(self.device if dummy else torch.device("cpu"))
        loading.copy_weights(fresh, self._loaded().model)

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """One entry per attention call, in the order of the calls."""
        model = self._loaded()
        return KVCacheSpec(model.layers, self.config.cache_config.block_size, model.kv_dtype.itemsize)

    def determine_available_memory(self) -> int:
        """Bytes for KV blocks: `kv_cache_memory_bytes`, or what a profile run of the largest step leaves.

        See `memory.measure_available_memory`; on a CPU at most 4 GiB.
        """
        cache_config = self.config.cache_config
        if cache_config.kv_cache_memory_bytes is not None:
            return cache_config.kv_cache_memory_bytes
        spec = self.get_kv_cache_spec()
        blocks = self.config.scheduler_config.max_num_seqs * -(-self._max_model_len // spec.block_size)
        return measure_available_memory(
            self._run_largest_step,
            self.device,
            utilization=cache_config.gpu_memory_utilization,
            most_useful=blocks * spec.bytes_per_block,
        )

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` blocks, in place of those allocated before."""
        self._cache = None
        self._cache = self._loaded().make_cache(num_blocks, self.config.cache_config.block_size)

    def capture_graphs(self) -> None:
        """Nothing: V1 runs no device graphs."""

    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""
        self._model = None
        self._cache = None
        self._executed = None
        self._batch.clear()
        if self.device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Run the forward pass of one step and keep its logits for `sample_tokens`."""
        step = scheduler_output
        model, cache = self._loaded(), self._cache
        if cache is None:
            raise RuntimeError("execute_model before initialize_kv_cache")
        if self._executed is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        self._batch.apply(step)
        if not step.rows:
            self._executed = _Executed(torch.empty(0, 0), ())
            return
        ends = [c + n for c, n in zip(step.num_computed_tokens, step.num_tokens, strict=True)]
        tables = self._batch.block_tables(step.rows, [-(-end // cache.block_size) for end in ends])
        token_ids: list[int] = []
        for row, start, end in zip(step.rows, step.num_computed_tokens, ends, strict=True):
            tokens = self._batch[row].tokens(start, end)
            if len(tokens) != end - start:
                raise ValueError(
                    f"row {row} has no tokens yet at positions {start + len(tokens)} .. {end - 1}"
                )
            token_ids.extend(tokens)
        layout = StepLayout(step.num_tokens, step.num_computed_tokens, tables, cache.block_size, self.device)
        wanted, positions = self._wanted_logits(step, layout)
        ids = to_device(np.asarray(token_ids, dtype=np.int64), self.device)
        # A step of mere prefill chunks needs no logits, but the head must be given a position.
        asked = np.asarray(positions or [layout.total_tokens - 1], dtype=np.int64)
        logits = model.forward(ids, layout, cache, to_device(asked, self.device))
        self._executed = _Executed(logits[: len(positions)], wanted)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Sample for the rows that yield a token, and remember the tokens for the next step."""
        executed, self._executed = self._executed, None
        if executed is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        prompt_logprobs: dict[int, Sequence[TokenLogprobs]] = {}
        sampled: list[int] = []
        at = 0
        with torch.inference_mode():
            for wanted in executed.wanted:
                count = len(wanted.prompt_targets)
                if count:
                    top_n = self._batch[wanted.row].request.sampling_params.prompt_logprobs or 0
                    logits = executed.logits[at : at + count]
                    prompt_logprobs[wanted.row] = sampling.prompt_logprobs(
                        logits, wanted.prompt_targets, top_n
                    )
                at += count
                if wanted.samples:
                    sampled.append(at)
                    at += 1
            rows = [wanted.row for wanted in executed.wanted if wanted.samples]
            # Where all rows only decode, the logits are in order already.
            logits = executed.logits if len(sampled) == len(executed.logits) else executed.logits[sampled]
            grammars = {}
            if grammar_output is not None:
                grammars = dict(zip(grammar_output.rows, grammar_output.bitmask, strict=True))
            sampling_rows = [self._sampling_row(row, grammars.get(row)) for row in rows]
            result = sampling.sample(logits, sampling_rows)
        for row, token in zip(rows, result.token_ids, strict=True):
            self._batch[row].output_token_ids.append(token)
        logprobs = {row: entry for row, entry in zip(rows, result.logprobs, strict=True) if entry is not None}
        return _Done(StepOutput(rows, result.token_ids, logprobs, prompt_logprobs))

    def _wanted_logits(self, step: SchedulerOutput, layout: StepLayout) -> tuple[list[_Wanted], list[int]]:
        """Per row what its logits are for, and the packed indices of all logits in that order."""
        wanted: list[_Wanted] = []
        positions: list[int] = []
        for i, row in enumerate(step.rows):
            state = self._batch[row]
            first, samples = step.num_computed_tokens[i], step.samples[i]
            targets: tuple[int, ...] = ()
            if state.request.sampling_params.prompt_logprobs is not None:
                targets = state.prompt_token_ids[first + 1 : first + step.num_tokens[i] + 1]
            if not targets and not samples:
                continue
            start = int(layout.starts[i])
            positions.extend(range(start, start + len(targets)))
            if samples:
                positions.append(int(layout.last_tokens[i]))
            wanted.append(_Wanted(row, targets, samples))
        return wanted, positions

    def _sampling_row(self, row: int, grammar_words: npt.NDArray[np.int32] | None) -> sampling.SamplingRow:
        state = self._batch[row]
        request = state.request
        if grammar_words is None and request.sampling_params.structured_outputs is not None:
            raise ValueError(f"row {row} has a grammar, and grammar_output doesn't say what it allows")
        return sampling.SamplingRow(
            params=request.sampling_params,
            prompt_token_ids=state.prompt_token_ids,
            output_token_ids=state.output_token_ids,
            seed=request.seed,
            stop_token_ids=request.stop_token_ids,
            bad_words_token_ids=request.bad_words_token_ids,
            grammar_words=grammar_words,
        )

    def _loaded(self) -> PackedModel:
        if self._model is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._model

    def _make_model(self, device: torch.device) -> torch.nn.Module:
        model_config, load_format = self.config.model_config, self.config.load_config.load_format
        path = resolve_model(
            model_config.model, revision=model_config.revision, weights=load_format != "dummy"
        )
        return loading.load_model(
            path,
            load_format=load_format,
            dtype=capabilities.choose_dtype(self.config, ModelInfo.load(path), self.device),
            device=device,
            seed=model_config.seed,
            trust_remote_code=model_config.trust_remote_code,
        )

    def _run_largest_step(self) -> None:
        """Prefill and sample for as many tokens as a step may hold, then decode with the longest context.

        All rows share one KV block: only the sizes of what is computed matter.
        """
        model = self._loaded()
        scheduler = self.config.scheduler_config
        block_size = self.config.cache_config.block_size
        cache = model.make_cache(1, block_size)
        longest, tokens = self._max_model_len, resolve_max_num_batched_tokens(self.config, self.device.type)

        prompts = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
        prompts = prompts[: scheduler.max_num_seqs]
        # A chunk at the end of a full context reads the most; on a CPU that would take minutes.
        computed = [longest - n if self.device.type == "cuda" else 0 for n in prompts]
        decodes = max(1, min(scheduler.max_num_seqs, MAX_GATHERED_TOKENS // longest))
        for num_tokens, num_computed in ((prompts, computed), ([1] * decodes, [longest - 1] * decodes)):
            tables = np.zeros((len(num_tokens), -(-longest // block_size)), dtype=np.int64)
            layout = StepLayout(num_tokens, num_computed, tables, block_size, self.device)
            ids = torch.zeros(layout.total_tokens, dtype=torch.int64, device=self.device)
            sampled = min(layout.total_tokens, scheduler.max_num_seqs)
            logits = model.forward(ids, layout, cache, torch.arange(sampled, device=self.device))
            with torch.inference_mode():
                sampling.sample(logits, [_PROFILE_ROW] * sampled)


def _machine() -> Environment:
    """The machine as torch sees it, whatever the oracle was told."""
    return Environment(has_triton=False, platform="cuda" if torch.cuda.is_available() else "cpu")


_PROFILE_ROW = sampling.SamplingRow(
    params=SamplingParams(temperature=1.0, top_p=0.9), prompt_token_ids=(0,), output_token_ids=(), seed=0
)
