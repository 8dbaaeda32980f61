"""Runner V2: dense Qwen3, Llama and Mistral on a GPU, or on several that split each layer, at speed.

Its own modelling code over fused weights; `runners.device` runs the steps. Ranks that split layers run the
same steps, each to its end: hidden states are sums over the ranks, the same bits on all of them, and so are
the logits, the drawn tokens and the state that these go to.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.device.memory import most_available_memory
from dodona.runners.device.ready import Ready
from dodona.runners.device.sampling.stages import example_params
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.drafting.kv_blocks import extended
from dodona.runners.drafting.lookup import LookupDrafter, WithDrafts
from dodona.runners.drafting.weights import with_draft
from dodona.runners.interface import (
    GrammarOutput,
    KVCacheSpec,
    KVConnectorOutput,
    KVPart,
    PendingOutput,
    Runner,
    SchedulerOutput,
)
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.factory import make_worker_connector
from dodona.runners.kv_transfer.worker_step import WithTransfers, after_forward, before_forward
from dodona.runners.limits import Limits
from dodona.runners.v2.loading.loaded import Loaded, load, reload
from dodona.runners.v2.loading.model import weight_views
from dodona.runners.v2.models.weights import quantized_tensors
from dodona.runners.v2.ranks import check_equal_bits, check_equal_devices
from dodona.runners.weights.life import WeightLife, WeightViews
from dodona.runners.weights.source import weights_directory


class V2Runner(WeightLife):
    """The fast runner. Two steps may be under way: the second is launched before the first one's tokens are
    read. With drafts by lookup on the host it is one."""

    name = "v2"
    request_features = frozenset({"structured-outputs"})
    samples_on_every_rank = True
    warm_up_params = example_params(grammar=False)

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits, mesh: Mesh = ALONE) -> None:
        super().__init__(config, model, limits)
        self._group = mesh.tensor
        self._device = torch.device(limits.device)
        self._loaded: Loaded | None = None
        self._steps: DeviceSteps | None = None
        self._lookup: LookupDrafter | None = None
        self._kv_connector = KVConnectorWorker()
        self._transfers: KVConnectorOutput | None = None
        """What the last `execute_model` heard of them."""

    @property
    def max_steps_in_flight(self) -> int:
        """See `DeviceSteps`."""
        return self.steps.max_steps_in_flight

    # -- life
    # ------------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> Loaded:
        """The model. Raises RuntimeError before `load_model`."""
        if self._loaded is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._loaded

    @property
    def steps(self) -> DeviceSteps:
        """The model's steps. Raises RuntimeError before `load_model`."""
        if self._steps is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._steps

    @property
    def ready(self) -> Ready:
        """What steps work with. Raises RuntimeError before `initialize_kv_cache`."""
        return self.steps.ready

    def try_load(self, earlier: Runner | None = None) -> Runner:
        """The model, and what drafts."""
        self._loaded = load(self.config, self.model_info, self.limits, self._group)
        return self

    def load_model(self) -> None:
        """Read the weights onto the device.

        Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError
        where config.json or the weights are not as they must be, speculative_config can't be served, or the
        ranks' devices differ.
        """
        check_equal_devices(self._group, self._device)
        self._loaded = load(self.config, self.model_info, self.limits, self._group)
        self._kv_connector = make_worker_connector(self.config)
        if self._loaded.lookup is not None:
            self._lookup = LookupDrafter(self._loaded.lookup)
        self.num_speculative_tokens = self._loaded.num_speculative_tokens
        self.num_device_drafts = 0 if self._loaded.drafting is None else self.num_speculative_tokens
        self._steps = DeviceSteps(
            self._loaded.model,
            self.limits,
            capture=not self.config.model_config.enforce_eager,
            num_speculative_tokens=self.num_speculative_tokens,
            drafting=self._loaded.drafting,
        )

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the weights again, in place, and those of the draft from where it was: captured graphs see the
        new ones. KV computed before belongs to the old."""
        self._require_weights("reload_weights")
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        directory = weights_directory(self.config, self.model_info, path)
        reload(self.loaded, self.config, self.model_info, self.limits, directory)

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """What a KV block holds over all layers, those of the draft among them."""
        loaded = self.loaded
        spec = loaded.spec.kv_cache_spec(self.limits.block_size)
        if loaded.drafting is None:
            return spec
        return extended(spec, loaded.drafting.layers, loaded.num_speculative_tokens)

    def get_kv_part(self) -> KVPart:
        """Of the target's layers; a draft's are not among them."""
        return self.loaded.spec.kv_part

    def determine_available_memory(self) -> int:
        """Bytes for KV blocks, and for those of each row's own: see
        `DeviceSteps.determine_available_memory`."""
        spec = self.get_kv_cache_spec()
        # Rows' own blocks are allocated while the rest is measured; the engine subtracts them, too.
        own = self.limits.max_num_seqs * spec.state_bytes_per_row
        return own + self.steps.determine_available_memory(spec.bytes_per_block)

    def most_available_memory(self) -> int:
        """See `runners.device.memory.most_available_memory`."""
        spec = self.get_kv_cache_spec()
        own = self.limits.max_num_seqs * spec.state_bytes_per_row
        most = most_available_memory(self.limits, self._all_weight_views().views.values())
        return min(most, own + spec.most_useful_bytes(self.limits))

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate KV blocks and what steps work in: see `DeviceSteps.initialize`."""
        self._kv_connector.release_kv_caches()
        self.steps.initialize(num_blocks, max_model_len)
        self._kv_connector.register_kv_caches(
            [
                LayerKV(cache[:, 0].transpose(1, 2), cache[:, 1].transpose(1, 2))
                for cache in self.ready.steps.kv_caches
            ],
            self.get_kv_part(),
        )

    def capture_graphs(self) -> None:
        """Compile what steps of all kinds need, and capture those of fixed form as CUDA graphs, unless
        `enforce_eager`.

        Nothing on a CPU. Ranks that split layers then compare their logits: raises ConfigError where they are
        not the same bits.
        """
        self.steps.capture_graphs()
        check_equal_bits(self._group, self.steps)

    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""
        self._kv_connector.shutdown()
        self._steps = None
        self._loaded = None
        if self._device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()
            torch.cuda.empty_cache()

    # -- steps
    # -----------------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Launch one step; never waits for the device. See `DeviceSteps.execute`."""
        _ = self.ready  # raises before its time
        metadata = scheduler_output.kv_connector_metadata
        if metadata is not None:
            before_forward(self._kv_connector, metadata, num_layers=self.loaded.spec.num_layers)
        if self._lookup is not None:
            self._lookup.begin(scheduler_output)
        self.steps.execute(scheduler_output)
        self._transfers = None
        if metadata is not None:
            num_layers = self.loaded.spec.num_layers
            self._transfers = after_forward(self._kv_connector, metadata, num_layers=num_layers)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Launch what is left of the step and the copies of its results."""
        pending: PendingOutput = self.steps.sample(grammar_output)
        if self._lookup is not None:
            pending = WithDrafts(pending, self._lookup)
        return pending if self._transfers is None else WithTransfers(pending, self._transfers)

    def take_kv_connector_output(self) -> KVConnectorOutput | None:
        """On a rank whose results nobody is told: what transfers came to."""
        return self._transfers

    # -- weights
    # ---------------------------------------------------------------------------------------------------

    def _weight_views(self) -> WeightViews:
        if self._group.size > 1:
            raise UnsupportedConfiguration.lacking(
                self.name,
                "load_weights and apply_sparse_weight_patches with several workers",
                why="each holds a share of the tensors; use reload_weights",
            )
        return self._all_weight_views()

    def _all_weight_views(self) -> WeightViews:
        found, drafting = weight_views(self.loaded.model), self.loaded.drafting
        return found if drafting is None else with_draft(found, drafting.weight_views())

    def _weights_to_release(self) -> Mapping[str, torch.Tensor]:
        return {**self._all_weight_views().views, **quantized_tensors(self.loaded.model.weights)}

    def _release_kv_cache(self) -> tuple[int, int | None]:
        self._kv_connector.release_kv_caches()
        return self.steps.release_kv_cache()
