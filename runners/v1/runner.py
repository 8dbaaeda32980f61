"""Runner V1: any Hugging Face causal LM by transformers' own code, with paged KV, on CPU and GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.hub import locate_or_download
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.interface import (
    GrammarOutput,
    KVCacheSpec,
    PendingOutput,
    Runner,
    SchedulerOutput,
    StepOutput,
)
from dodona.runners.machine import torch_environment
from dodona.runners.v1 import capabilities, loading
from dodona.runners.v1.batch_state import BatchState
from dodona.runners.v1.memory import measure_available_memory, run_largest_step
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.self_check import SelfCheck, self_check
from dodona.runners.v1.step import ExecutedStep, Ready
from dodona.runners.v1.tensor_parallel import shard_model

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are on the device and whose paged path was checked."""

    model: PackedModel
    self_check: SelfCheck


@dataclass(frozen=True, slots=True)
class FinishedOutput:
    """The pending output of a step that has ended already: V1 samples on the host."""

    output: StepOutput

    def result(self) -> StepOutput:
        """The output; never waits."""
        return self.output


class V1Runner(Runner):
    """The general runner: one step at a time, each read to its end before the next begins."""

    name = "v1"
    max_steps_in_flight = 1
    request_features = frozenset({"structured-outputs"})

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits, mesh: Mesh = ALONE) -> None:
        super().__init__(config, model, limits)
        self._mesh = mesh
        self._device = torch.device(limits.device)
        # How far the runner's life has come; `shutdown` goes back to the beginning.
        self._loaded: Loaded | None = None
        self._ready: Ready | None = None
        self._executed: ExecutedStep | None = None

    # --- Life

    def load_model(self) -> None:
        """Read the weights, record the attention calls and run the self-check.

        Raises UnsupportedConfiguration naming each feature V1 lacks (nothing is loaded then), or why this
        model's paged path can't be trusted; ConfigError where the weights are not those of config.json.
        """
        machine = torch_environment(self.limits.device)
        lacking = capabilities.check_supported(self.config, self.model_info, machine)
        if lacking:
            raise UnsupportedConfiguration.lacking(self.name, *lacking)
        # Of several ranks, each device is to hold its share of the weights only. Random weights depend on the
        # device that draws them.
        direct = self._mesh.size == 1 or self.config.load_config.load_format == "dummy"
        whole = self._read_model(self._device if direct else torch.device("cpu"))
        shard_model(whole, self._mesh.tensor)
        model = PackedModel(whole.to(self._device), compiled=capabilities.compiles(self.config))
        self._loaded = Loaded(model, self_check(model, max_model_len=self.limits.max_model_len))

    def reload_weights(self) -> None:
        """Read the weights again, in place. KV computed before belongs to the old weights."""
        # Random weights depend on the device that draws them.
        dummy = self.config.load_config.load_format == "dummy"
        fresh = self._read_model(self._device if dummy else torch.device("cpu"))
        shard_model(fresh, self._mesh.tensor)
        loading.copy_weights(fresh, self._require_loaded().model.model)

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """One entry per attention call, in the order of the calls."""
        model = self._require_loaded().model
        return KVCacheSpec(model.layers, self.limits.block_size, model.kv_dtype.itemsize)

    def determine_available_memory(self) -> int:
        """Bytes for KV blocks that a run of the largest step leaves.

        See `memory.measure_available_memory`; on a CPU at most 4 GiB.
        """
        limits, spec = self.limits, self.get_kv_cache_spec()
        blocks = limits.max_num_seqs * -(-limits.max_model_len // limits.block_size)
        return measure_available_memory(
            partial(run_largest_step, self._require_loaded().model, limits),
            self._device,
            utilization=limits.gpu_memory_utilization,
            most_useful=blocks * spec.bytes_per_block,
        )

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` blocks, in place of those allocated before.

        `max_model_len` makes no difference: a request's tokens are a list that grows with it.
        """
        model = self._require_loaded().model
        self._ready = None  # releases the blocks allocated before
        self._ready = Ready(model, model.make_cache(num_blocks, self.limits.block_size), BatchState())

    def capture_graphs(self) -> None:
        """Nothing: V1 runs no device graphs."""

    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""
        self._loaded = None
        self._ready = None
        self._executed = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # --- Steps

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Run the forward pass of one step and keep its logits for `sample_tokens`."""
        ready = self._require_ready()
        if self._executed is not None:
            raise RuntimeError("execute_model twice without sample_tokens in between")
        self._executed = ready.execute(scheduler_output)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Sample for the rows that yield a token, and remember the tokens for the next step."""
        executed, self._executed = self._executed, None
        if executed is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        return FinishedOutput(self._require_ready().sample(executed, grammar_output))

    def take_sampled_tokens(self, output: StepOutput) -> None:
        """In place of `sample_tokens`, on a rank that doesn't sample: what another rank sampled."""
        self._executed = None
        self._require_ready().take(output)

    # --- Parts

    def _require_loaded(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._loaded

    def _require_ready(self) -> Ready:
        if self._ready is None:
            raise RuntimeError("a step before initialize_kv_cache: there is no KV cache yet")
        return self._ready

    def _read_model(self, device: torch.device) -> torch.nn.Module:
        """The model on `device`, its weights read from the model directory or drawn at random."""
        model_config, load_format = self.config.model_config, self.config.load_config.load_format
        dtype: torch.dtype = getattr(torch, self.limits.dtype)
        return loading.load_model(
            locate_or_download(
                model_config.model, revision=model_config.revision, weights=load_format != "dummy"
            ),
            load_format=load_format,
            dtype=dtype,
            device=device,
            seed=model_config.seed,
            trust_remote_code=model_config.trust_remote_code,
        )
