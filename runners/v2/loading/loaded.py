"""A model in memory with what drafts for it: what `load_model` makes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import triton

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.pooler import PoolingSettings
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.oracle.systems.own.speculation import check_speculation
from dodona.oracle.systems.own.weights import check_weights
from dodona.runners.distributed.mesh import Group
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, HostLookup, LookupPlan, ModelPlan, plan_drafting
from dodona.runners.drafting.weights import overwrite
from dodona.runners.limits import Limits
from dodona.runners.machine import torch_environment
from dodona.runners.v2 import capabilities
from dodona.runners.v2.drafting.load import Drafting, hidden_states, load_drafting, read_again
from dodona.runners.v2.loading.model import read_model, read_weights
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.weights.source import weights_directory


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model whose weights are on the device."""

    model: DenseModel
    num_speculative_tokens: int
    """Most drafts of a row in a step."""
    lookup: HostLookup | None
    """Drafts on the host."""
    drafting: Drafting | None
    """Drafts on the device."""

    @property
    def spec(self) -> ModelSpec:
        """The model's."""
        return self.model.spec


def load(config: EngineConfig, info: ModelInfo, limits: Limits, group: Group) -> Loaded:
    """Read a model's weights onto the device, of which `group` says what this rank has, and those of its
    draft.

    Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError where
    config.json or the weights are not as they must be, or speculative_config can't be served.
    """
    _refuse(config, info, limits)
    plan = _plan(config, info, limits)
    seen = hidden_states(plan, limits)
    model = read_model(
        info,
        limits,
        weights_directory(config, info, None),
        seed=config.model_config.seed,
        quantization=quantization_of(config, info),
        seen=seen,
        group=group,
    )
    return Loaded(
        model,
        0 if plan is None else plan.num_speculative_tokens,
        plan.lookup if isinstance(plan, LookupPlan) else None,
        load_drafting(plan, model, seen, config, limits),
    )


def reload(
    loaded: Loaded, config: EngineConfig, info: ModelInfo, limits: Limits, directory: Path | None
) -> None:
    """Read the weights again, in place, from `directory` or (None) at random, and those of the draft from
    where it was. Raises ConfigError, before the first write, where either does not fit what runs."""
    plan, drafting, draft = _plan(config, info, limits), loaded.drafting, None
    if drafting is not None and isinstance(plan, (HeadPlan, ModelPlan)):
        draft = read_again(plan, drafting, loaded.model, config)
    read_weights(loaded.model, directory, seed=config.model_config.seed)
    if drafting is not None and draft is not None:
        overwrite(drafting.weights(), draft)


def load_pooling(
    config: EngineConfig, info: ModelInfo, limits: Limits, settings: PoolingSettings
) -> DenseModel:
    """The same for a pooling model."""
    _refuse(config, info, limits)
    return read_model(
        info,
        limits,
        weights_directory(config, info, None),
        seed=config.model_config.seed,
        quantization=quantization_of(config, info),
        pooling=settings,
    )


def _check(limits: Limits) -> Callable[[EngineConfig, ModelInfo], tuple[str, ...]]:
    """`check_supported` of this machine."""
    return partial(
        capabilities.check_supported,
        environment=torch_environment(limits.device),
        interpreted=limits.device == "cpu" and bool(triton.knobs.runtime.interpret),
    )


def _plan(config: EngineConfig, info: ModelInfo, limits: Limits) -> DraftPlan | None:
    lacks = partial(capabilities.lacks_of_draft, check=_check(limits))
    machine = torch_environment(limits.device)
    return plan_drafting(config, info, machine, runner="v2", lacks_of_draft=lacks)


def _refuse(config: EngineConfig, info: ModelInfo, limits: Limits) -> None:
    """Raise UnsupportedConfiguration for what V2 lacks, ConfigError for speculative_config and weights."""
    lacking = _check(limits)(config, info)
    if {*lacking} - {"weights", "speculative-settings"}:
        raise UnsupportedConfiguration.lacking("v2", *lacking)
    machine = torch_environment(limits.device)
    check_speculation(config, info, machine)
    check_weights(config, info, machine)
