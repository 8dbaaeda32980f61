"""Runner V1: any Hugging Face causal LM by transformers' own code, packed over paged KV or row by row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.memory import least_weight_bytes
from dodona.oracle.systems.own.model_code import is_row_by_row, outgrows_rope
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.oracle.systems.own.speculation import check_speculation
from dodona.oracle.systems.own.weights import check_weights
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.drafting.lookup import WithDrafts
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, ModelPlan, MtpPlan, plan_drafting
from dodona.runners.drafting.weights import of_draft, overwrite, with_draft
from dodona.runners.interface import (
    FinishedOutput,
    GrammarOutput,
    KVCacheSpec,
    KVConnectorOutput,
    KVPart,
    PendingOutput,
    Runner,
    SchedulerOutput,
    StepOutput,
)
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.factory import make_worker_connector
from dodona.runners.kv_transfer.worker_step import WithTransfers, after_forward, before_forward
from dodona.runners.lora.target import LoRATarget
from dodona.runners.machine import torch_environment
from dodona.runners.phases import phase
from dodona.runners.v1 import capabilities, loading, model_weights
from dodona.runners.v1.batch_state import BatchState
from dodona.runners.v1.choice import choose
from dodona.runners.v1.device_serving import DeviceServing, is_for_device, serve_on_device
from dodona.runners.v1.drafting import reload
from dodona.runners.v1.drafting.drafting import Drafting
from dodona.runners.v1.drafting.load import load_drafting
from dodona.runners.v1.kv_parts import kv_part
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.memory import measure_available_memory, most_available_memory, run_largest_step
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.pipeline_parallel import take_stage
from dodona.runners.v1.self_check import SelfCheck
from dodona.runners.v1.served_model import ServedModel
from dodona.runners.v1.step import ExecutedStep, Ready
from dodona.runners.v1.tensor_parallel import Shares, shard_model
from dodona.runners.v1.trial import NOT_CHECKED, copy_of, try_load
from dodona.runners.v1.window_tables import WindowTables
from dodona.runners.weights.life import WeightLife, WeightViews
from dodona.runners.weights.source import weights_directory

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are on the device and whose steps were checked."""

    model: ServedModel
    self_check: SelfCheck
    kv_part: KVPart
    plan: DraftPlan | None
    """What drafts, on this rank or another."""
    drafting: Drafting | None
    """On the rank that samples."""
    lora: LoRALayers | None
    steps_on_device: bool
    """Whether steps run from state on the device, or would after a trial load."""


class V1Runner(WeightLife):
    """The general runner. On a GPU its steps run from state on the device, two under way; elsewhere, and for
    what can't run so (see `device_serving`), the host lays out one step at a time and reads it to its end."""

    name = "v1"
    request_features = frozenset({"structured-outputs"})

    def __init__(self, config: EngineConfig, model: ModelInfo, limits: Limits, mesh: Mesh = ALONE) -> None:
        super().__init__(config, model, limits)
        self._mesh = mesh
        self._device = torch.device(limits.device)
        # How far the runner's life has come; `shutdown` goes back to the beginning.
        self._loaded: Loaded | None = None
        self._on_device: DeviceServing | None = None
        self._ready: Ready | None = None
        self._executed: ExecutedStep | None = None
        self._kv_connector = KVConnectorWorker()
        self._transfers: KVConnectorOutput | None = None
        """What the last `execute_model` heard of them."""
        self._tried_whole: torch.nn.Module | None = None
        """What `try_load` read, for the stages that are tried after this one."""

    @property
    def max_steps_in_flight(self) -> int:
        """Two where steps run from state on the device: tokens needn't be read before the next step. With
        drafts, one."""
        return 1 if self._on_device is None else self._on_device.steps.max_steps_in_flight

    # --- Life

    def load_model(self) -> None:
        """Read the weights and choose how the model computes steps; see `choice.choose`.

        Raises UnsupportedConfiguration naming each feature V1 lacks (nothing is loaded then), or why this
        model's steps can't be trusted; ConfigError where the weights are not those of config.json, or
        speculative_config can't be served (nothing is loaded then).
        """
        plan = self._check()
        self._kv_connector = make_worker_connector(self.config)
        directory = weights_directory(self.config, self.model_info, None)
        outgrows = outgrows_rope(self.config, self.model_info)
        with phase("V1: weights"):
            share, shares = self._read_share(self._device, directory, plan)
        with phase("V1: record attention calls, self-check"):
            chosen = choose(
                share,
                max_model_len=self.limits.max_model_len,
                compiled=capabilities.compiles(self.config),
                mesh=self._mesh,
                rope_changes_beyond=self.model_info.rope_fixed_length if outgrows else None,
                need_packing=capabilities.need_packing(self.config),
            )
        drafting: Drafting | None = None
        if plan is not None:
            drafting = load_drafting(plan, chosen.model, self.config, self.limits, self._mesh)
        self.num_speculative_tokens = 0 if plan is None else plan.num_speculative_tokens
        lora: LoRALayers | None = None
        if self.config.lora_config is not None:
            with chosen.model.plain() as plain:
                lora = LoRALayers(plain, self.config.lora_config, shares.linears)
        part = kv_part(chosen.model, shares.kv_parts, self._mesh, self._device)
        if isinstance(chosen.model, PackedModel):
            self._on_device = serve_on_device(chosen.model, self.config, self.limits, lora, plan)
        on_device = self._on_device is not None
        self._loaded = Loaded(chosen.model, chosen.self_check, part, plan, drafting, lora, on_device)

    def try_load(self, earlier: Runner | None = None) -> Runner:
        """The model, or this rank's share of it, a pass over few tokens, what drafts, and room for
        adapters."""
        plan = self._check()
        directory, info = weights_directory(self.config, self.model_info, None), self.model_info
        whole = copy_of(earlier._tried_whole) if isinstance(earlier, V1Runner) else None
        if whole is None:
            whole = self._read_whole(self._device, directory)
        if self._mesh.pipeline.size > 1:
            self._tried_whole = copy_of(whole)
        share, shares = self._share_of(whole, self._device, plan)
        served = try_load(
            share,
            shares.linears,
            plan,
            self.config,
            self.limits,
            self._mesh,
            need_packing=capabilities.need_packing(self.config),
            rope_changes_beyond=info.rope_fixed_length if outgrows_rope(self.config, info) else None,
            is_row_by_row=is_row_by_row(self.config, info, torch_environment(self.limits.device)) is True,
        )
        self.num_speculative_tokens = 0 if plan is None else plan.num_speculative_tokens
        part = kv_part(served.model, shares.kv_parts, self._mesh, self._device)
        # A start whose kernels fail their check lays steps out on the host, and needs no more for KV.
        on_device = isinstance(served.model, PackedModel) and is_for_device(
            served.model, self._device, self.config, self.limits, plan
        )
        self._loaded = Loaded(served.model, NOT_CHECKED, part, plan, served.drafting, None, on_device)
        return self

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the weights again, in place, and those of the draft from where it was. KV computed before
        belongs to the old weights."""
        self._require_weights("reload_weights")
        self._require_own_layers("reload_weights")
        loaded = self._require_loaded()
        directory = weights_directory(self.config, self.model_info, path)
        # Random weights depend on the device that draws them.
        device = torch.device("cpu") if directory else self._device
        fresh, _ = self._read_share(device, directory, loaded.plan)
        plan, target = self._plan_drafting(), loaded.model.model
        if plan is None or loaded.drafting is None:
            model_weights.replace(target, fresh)
            return
        draft = reload.read_again(
            plan, loaded.drafting, target, self.config, self.limits, directory=directory
        )
        model_weights.replace(target, fresh)
        overwrite(loaded.drafting.weights(), draft)

    def get_lora_targets(self) -> Mapping[str, LoRATarget]:
        """The linear layers that see each token of a pass, by name."""
        lora = self._require_loaded().lora
        if lora is None:
            raise RuntimeError("lora_config is not set")
        return lora.targets

    def get_kv_cache_spec(self) -> KVCacheSpec:
        """Packed: one entry per attention call, in the order of the calls. Row by row: one for all.

        Where tokens add nothing to a cache, a block counts a whole sequence and takes no bytes.
        """
        loaded, limits = self._require_loaded(), self.limits
        model, drafting = loaded.model, loaded.drafting
        spec = KVCacheSpec(
            model.layers,
            limits.block_size,
            model.kv_dtype.itemsize,
            # A row's states are kept after each draft.
            model.state_bytes_per_row * (1 + self.num_speculative_tokens),
            model.shares_prefixes,
        )
        if drafting is not None:
            spec = drafting.extend_spec(spec)
        if not spec.layers:
            spec = replace(spec, block_size=limits.max_model_len)
        # A connector moves whole KV blocks, a draft reads its KV by their ids, and steps on the device have
        # one block table of a row, as ranks that share prompts. Stages have other layers than the engine is
        # told of.
        keeps_kv = isinstance(loaded.plan, (ModelPlan, HeadPlan, MtpPlan))
        together = has_active_connector(self.config) or keeps_kv
        together |= loaded.steps_on_device
        together |= self._mesh.context.size > 1 or self._mesh.pipeline.size > 1
        return replace(spec, windows_apart=not together)

    def get_kv_part(self) -> KVPart:
        """Of the target's layers; a draft's are not among them."""
        return self._require_loaded().kv_part

    def determine_available_memory(self) -> int:
        """Bytes for inner states and KV blocks that a run of the largest step leaves.

        See `memory.measure_available_memory`; on a CPU at most 4 GiB for KV blocks.
        """
        limits, spec = self.limits, self.get_kv_cache_spec()
        states = limits.max_num_seqs * spec.state_bytes_per_row
        if self._on_device is not None:
            # The states are allocated while the rest is measured; the engine subtracts them, too.
            return states + self._on_device.steps.determine_available_memory(spec.bytes_per_block)
        loaded = self._require_loaded()

        def largest_step() -> None:
            run_largest_step(loaded.model, limits, of_stages=self._mesh.pipeline.size > 1)
            if loaded.drafting is not None:
                loaded.drafting.run_largest_step(limits)

        return measure_available_memory(
            largest_step,
            self._device,
            limits=limits,
            most_useful=spec.most_useful_bytes(limits),
            state_bytes=states,
        )

    def most_available_memory(self) -> int:
        """See `memory.most_available_memory`."""
        limits, spec = self.limits, self.get_kv_cache_spec()
        return most_available_memory(
            limits,
            weights=self._require_loaded().model.model,
            host_bytes=least_weight_bytes(self.config, self.model_info, torch_environment(limits.device)),
            most_useful=spec.most_useful_bytes(limits),
            state_bytes=limits.max_num_seqs * spec.state_bytes_per_row,
        )

    def initialize_kv_cache(self, num_blocks: int, max_model_len: int | None = None) -> None:
        """Allocate `num_blocks` blocks and a slot of inner states for each row, in place of those allocated
        before.

        `max_model_len` makes no difference on the host: a request's tokens are a list that grows with it.
        """
        self._kv_connector.release_kv_caches()
        if self._on_device is not None:
            self._on_device.initialize(num_blocks, max_model_len)
            self._kv_connector.register_kv_caches(self._on_device.kv_layers(), self.get_kv_part())
            return
        loaded, spec, num_rows = self._require_loaded(), self.get_kv_cache_spec(), self.limits.max_num_seqs
        model, drafting, groups = loaded.model, loaded.drafting, spec.window_groups
        counts = zip(groups, spec.num_window_blocks(num_blocks, self.limits), strict=True)
        self._ready = None  # releases what was allocated before
        self._ready = Ready(
            model,
            model.make_cache(num_blocks, spec.block_size, [(group.layers, count) for group, count in counts]),
            WindowTables(groups, num_blocks),
            model.make_state_slots(num_rows, num_drafts=self.num_speculative_tokens),
            BatchState(),
            None if drafting is None else drafting.start(num_blocks, self.limits),
            loaded.lora,
        )
        self._kv_connector.register_kv_caches(self._ready.cache.layers(), self.get_kv_part())

    def capture_graphs(self) -> None:
        """Compile what steps on the device need and capture those of fixed form, unless `enforce_eager` or
        the model can't be captured; then run the self-check through the graphs, unless a sleep dropped the
        weights and nobody loaded them again. Nothing on a CPU."""
        if self._on_device is not None:
            self._on_device.capture_graphs(check=not self.missing_weights())

    def shutdown(self) -> None:
        """Release the model, the KV cache and device memory. Idempotent."""
        self._kv_connector.shutdown()
        if self._on_device is not None:
            self._on_device.release()
        self._on_device = None
        self._loaded = None
        self._ready = None
        self._executed = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # --- Steps

    def execute_model(self, scheduler_output: SchedulerOutput) -> None:
        """Run the forward pass of one step and keep its logits for `sample_tokens`."""
        metadata = scheduler_output.kv_connector_metadata
        if metadata is not None:
            before_forward(self._kv_connector, metadata, num_layers=self._num_layers)
        if self._on_device is not None:
            self._on_device.execute(scheduler_output)
        else:
            ready = self._require_ready()
            if self._executed is not None:
                raise RuntimeError("execute_model twice without sample_tokens in between")
            executed = ready.execute(scheduler_output)
            self._executed = executed if self._mesh.samples else None
        self._transfers = None
        if metadata is not None:
            self._transfers = after_forward(self._kv_connector, metadata, num_layers=self._num_layers)

    def sample_tokens(self, grammar_output: GrammarOutput | None = None) -> PendingOutput:
        """Sample for the rows that yield a token, and remember the tokens for the next step."""
        if self._on_device is not None:
            pending: PendingOutput = self._on_device.steps.sample(grammar_output)
            if self._on_device.lookup is not None:
                pending = WithDrafts(pending, self._on_device.lookup)
            return pending if self._transfers is None else WithTransfers(pending, self._transfers)
        executed, self._executed = self._executed, None
        if executed is None:
            raise RuntimeError("sample_tokens without execute_model before it")
        done = FinishedOutput(self._require_ready().sample(executed, grammar_output))
        return done if self._transfers is None else WithTransfers(done, self._transfers)

    def take_kv_connector_output(self) -> KVConnectorOutput | None:
        """In place of `sample_tokens`, on a rank that doesn't sample: what transfers came to."""
        return self._transfers

    def take_sampled_tokens(self, output: StepOutput) -> None:
        """In place of `sample_tokens`, on a rank that doesn't sample: what another rank sampled."""
        self._require_ready().take(output)

    # --- Parts

    def _check(self) -> DraftPlan | None:
        """Raise what `load_model` refuses before it reads weights, and give what drafts."""
        machine = torch_environment(self.limits.device)
        lacking = capabilities.check_supported(self.config, self.model_info, machine)
        if {*lacking} - {"weights", "speculative-settings"}:
            raise UnsupportedConfiguration.lacking(self.name, *lacking)
        check_speculation(self.config, self.model_info, machine)
        check_weights(self.config, self.model_info, machine)
        return self._plan_drafting()

    def _plan_drafting(self) -> DraftPlan | None:
        machine = torch_environment(self.limits.device)
        return plan_drafting(
            self.config,
            self.model_info,
            machine,
            runner=self.name,
            lacks_of_draft=partial(capabilities.lacks_of_draft, environment=machine),
        )

    @property
    def _num_layers(self) -> int:
        return len(self._require_loaded().model.layers)

    def _require_loaded(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the model is not loaded: call load_model first")
        return self._loaded

    def _require_ready(self) -> Ready:
        if self._ready is None:
            raise RuntimeError("a step before initialize_kv_cache: there is no KV cache yet")
        return self._ready

    def _weight_views(self) -> WeightViews:
        if self._mesh.size > 1:
            raise UnsupportedConfiguration.lacking(
                self.name,
                "load_weights and apply_sparse_weight_patches with several workers",
                why="each holds a share of the tensors; use reload_weights",
            )
        loaded = self._require_loaded()
        found = model_weights.views(loaded.model.model)
        if loaded.drafting is None:
            return found
        return with_draft(found, loaded.drafting.weight_views())

    def _weights_to_release(self) -> Mapping[str, torch.Tensor]:
        loaded = self._require_loaded()
        found = model_weights.releasable(loaded.model.model)
        if loaded.drafting is not None:
            own = loaded.drafting.weights()
            found |= of_draft({name: t for name, t in own.items() if t.is_floating_point()})
        return found

    def _release_kv_cache(self) -> tuple[int, int | None]:
        self._kv_connector.release_kv_caches()
        if self._on_device is not None:
            return self._on_device.steps.release_kv_cache()
        num_blocks = self._require_ready().cache.num_blocks
        self._ready = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return num_blocks, None

    def _read_share(
        self, device: torch.device, directory: Path | None, plan: DraftPlan | None
    ) -> tuple[torch.nn.Module, Shares]:
        """The model on `device` with this rank's share of the weights, and what `shard_model` returns."""
        return self._share_of(self._read_whole(device, directory), device, plan)

    def _read_whole(self, device: torch.device, directory: Path | None) -> torch.nn.Module:
        """The whole model; where `device` is to hold a share only, on the host. Random weights depend on the
        device that draws them."""
        on_host = self._mesh.size > 1 and directory is not None
        return self._read_model(torch.device("cpu") if on_host else device, directory)

    def _share_of(
        self, model: torch.nn.Module, device: torch.device, plan: DraftPlan | None
    ) -> tuple[torch.nn.Module, Shares]:
        if self._mesh.size == 1:
            return model, Shares()
        borrowed = isinstance(plan, MtpPlan) or (isinstance(plan, HeadPlan) and plan.borrows_embedding)
        take_stage(model, self._mesh.pipeline, last_has_embedding=borrowed)
        shares = shard_model(
            model, self._mesh.tensor, whole_experts=self.config.parallel_config.enable_expert_parallel
        )
        return model.to(device), shares

    def _read_model(self, device: torch.device, directory: Path | None) -> torch.nn.Module:
        """The model on `device`, its weights read from a directory or (None) drawn at random."""
        model_config = self.config.model_config
        dtype: torch.dtype = getattr(torch, self.limits.dtype)
        return loading.load_model(
            locate_or_download(model_config.model, revision=model_config.revision),
            weights=directory,
            dtype=dtype,
            device=device,
            seed=model_config.seed,
            trust_remote_code=model_config.trust_remote_code,
            quantization=quantization_of(self.config, self.model_info),
        )
