"""Decides at load whether a model's steps run from state on the device, and whether they can be captured.

This is the only place that decides it. What a model or a configuration can't do there is found by trying, is
said once in the log, and runs as before: launch by launch, or in steps that the host lays out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.device.graphs import FixedStep, capturing
from dodona.runners.device.state import fits
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.drafting.lookup import LookupDrafter
from dodona.runners.drafting.plan import DraftPlan, LookupPlan
from dodona.runners.interface import SchedulerOutput
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.limits import Limits
from dodona.runners.phases import phase
from dodona.runners.third_party import first_line
from dodona.runners.v1 import capabilities
from dodona.runners.v1.device_check import NEW_TOKENS, check_device_steps, check_graphs
from dodona.runners.v1.device_forward import keys_and_values
from dodona.runners.v1.device_lora import DeviceAdapters
from dodona.runners.v1.device_model import DeviceModel
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.packed_model import PackedModel

logger = logging.getLogger(__name__)

_CHECK_LENGTH = 128
"""Tokens of the check's longer prompt, or as many as its largest window needs."""


def kernels_run_on(device: torch.device) -> bool:
    """Whether Triton's kernels run on the device at speed."""
    return device.type == "cuda"


@dataclass(frozen=True, slots=True, eq=False)
class DeviceServing:
    """A model and its steps on the device."""

    model: DeviceModel
    steps: DeviceSteps
    lookup: LookupDrafter | None = None
    """Drafts for what steps yield."""

    def initialize(self, num_blocks: int, max_model_len: int | None) -> None:
        """Make the KV cache and what steps work in, without any request; see `DeviceSteps.initialize`."""
        if self.model.adapters is not None:
            self.model.adapters.forget_rows()
        self.steps.initialize(num_blocks, max_model_len)

    def execute(self, scheduler_output: SchedulerOutput) -> None:
        """Launch one step; see `DeviceSteps.execute`."""
        if self.model.adapters is not None:
            self.model.adapters.update(scheduler_output)
        if self.lookup is not None:
            self.lookup.begin(scheduler_output)
        self.steps.execute(scheduler_output)

    def kv_layers(self) -> list[LayerKV]:
        """The KV cache block by block, by attention call, for KV transfer."""
        caches, block_size = self.steps.ready.steps.kv_caches, self.steps.limits.block_size
        return [
            LayerKV(*(view.transpose(1, 2) for view in keys_and_values(cache, layer, block_size)))
            for cache, layer in zip(caches, self.model.packed.layers, strict=False)
        ]

    def release(self) -> None:
        """Give back the KV cache and what steps work in, and let the model's parts compute themselves again:
        a fused part refers to its module, which refers to it."""
        self.steps.release()
        self.model.fusions.remove()

    def capture_graphs(self, *, check: bool) -> None:
        """Capture the steps of fixed form.

        check: run the self-check through the graphs, and drop them where they compute something else. It
        shows nothing while weights are lost.
        """
        self.steps.capture_graphs()
        ready = self.steps.ready
        if ready.graphs is None or not check:
            return
        try:
            with phase("V1: check steps by graphs"):
                check_graphs(
                    self.model,
                    self.steps,
                    num_blocks=ready.num_blocks,
                    prompt_length=_check_length(self.model.packed),
                )
        except UnsupportedConfiguration as error:
            name = self.model.packed.name
            logger.warning("V1: the CUDA graphs of %s are not used: %s", name, first_line(error))
            self.steps.use_graphs(None)


def is_for_device(
    model: PackedModel, device: torch.device, config: EngineConfig, limits: Limits, plan: DraftPlan | None
) -> bool:
    """Whether `serve_on_device` tries to serve the model, whose weights needn't have values, on `device`."""
    return kernels_run_on(device) and not _reasons_against(model, config, limits, plan)


def serve_on_device(
    model: PackedModel,
    config: EngineConfig,
    limits: Limits,
    lora: LoRALayers | None = None,
    plan: DraftPlan | None = None,
) -> DeviceServing | None:
    """The model's steps on the device, checked against the plain model; None where they are the host's.

    lora: the model's adapters, where requests may have some. plan: what drafts.
    Fused parts are installed in the model where its steps run on the device.
    """
    if not kernels_run_on(model.device):
        return None
    reasons = _reasons_against(model, config, limits, plan)
    if reasons:
        _say_on_the_host(model, "; ".join(reasons))
        return None
    num_drafts = 0 if plan is None else plan.num_speculative_tokens
    try:
        with phase("V1: replace parts by kernels"):
            adapters = None
            if lora is not None:
                adapters = DeviceAdapters(lora, num_rows=limits.max_num_seqs, device=model.device)
            device_model = DeviceModel(model, limits.block_size, adapters)
    except Exception as error:
        _say_on_the_host(model, first_line(error))
        return None
    try:
        with phase("V1: check steps on the device"):
            _check(device_model, limits, num_drafts)
        with phase("V1: try a capture"):
            captures = not config.model_config.enforce_eager and _can_be_captured(device_model, limits)
    except Exception as error:
        device_model.fusions.remove()
        _say_on_the_host(model, first_line(error))
        return None
    finally:
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    steps = DeviceSteps(device_model, limits, capture=captures, num_speculative_tokens=num_drafts)
    return DeviceServing(
        device_model, steps, LookupDrafter(plan.lookup) if isinstance(plan, LookupPlan) else None
    )


def _check_length(model: PackedModel) -> int:
    """Tokens of a prompt that reaches beyond the model's windows, where these are not long."""
    windows = [call.pattern.size for call in model.calls if 2 * call.pattern.size + 3 <= _CHECK_LENGTH]
    return max(2 * max(windows) + 3 if any(windows) else 0, 21)


def _reasons_against(
    model: PackedModel, config: EngineConfig, limits: Limits, plan: DraftPlan | None
) -> Sequence[str]:
    """What a configuration needs that steps on the device don't have yet."""
    found = {
        "several ranks exchange tensors": config.parallel_config.world_size > 1,
        "torch.compile is on": capabilities.compiles(config),
        "a model or a head drafts": not isinstance(plan, LookupPlan | None),
        "inner states are kept after each draft": plan is not None and bool(model.mixers),
        "its rotary frequencies grow with each row's length": model.grows_rope,
        "max_num_seqs × max_model_len is too large for the requests' state": not fits(
            max_num_seqs=limits.max_num_seqs,
            max_model_len=limits.max_model_len,
            block_size=limits.block_size,
        ),
    }
    return [reason for reason, holds in found.items() if holds]


def _check(model: DeviceModel, limits: Limits, num_drafts: int) -> None:
    length = _check_length(model.packed)
    blocks_per_row = -(-(length + NEW_TOKENS + num_drafts) // limits.block_size)
    steps = DeviceSteps(model, limits, capture=False, num_speculative_tokens=num_drafts)
    steps.initialize(2 * blocks_per_row, min(limits.max_model_len, blocks_per_row * limits.block_size))
    check_device_steps(model, steps, num_blocks=2 * blocks_per_row, prompt_length=length)


def _can_be_captured(model: DeviceModel, limits: Limits) -> bool:
    """Whether a step of one decode can be captured: found by trying. Says why where it can't."""
    if model.device.type != "cuda":
        return False
    steps = DeviceSteps(model, limits, capture=False)
    steps.initialize(1, min(limits.max_model_len, limits.block_size))
    run = steps.ready.steps
    try:
        with torch.inference_mode():
            run.set_padding(prompts=False)
            run.run(FixedStep(1, True))
            torch.cuda.synchronize()
            with capturing() as graph:
                run.run(FixedStep(1, True))
            graph.replay()
            torch.cuda.synchronize()
    except Exception as error:
        logger.warning(
            "V1: %s can't be captured in CUDA graphs: its decode steps are launched kernel by kernel, which "
            "makes small batches several times slower: %s",
            model.packed.name,
            first_line(error),
        )
        return False
    return True


def _say_on_the_host(model: PackedModel, why: str) -> None:
    logger.warning(
        "V1: the steps of %s are laid out on the host, which makes them many times slower on a GPU: %s",
        model.name,
        why,
        exc_info=logger.isEnabledFor(logging.DEBUG),
    )
