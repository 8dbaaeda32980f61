"""A model in memory with what drafts for it: what `load_model` makes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import triton

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.runners.drafting.plan import NgramPlan, plan_drafting
from dodona.runners.drafting.prompt_lookup import PromptLookup
from dodona.runners.limits import Limits
from dodona.runners.machine import torch_environment
from dodona.runners.pooling.settings import PoolingSettings
from dodona.runners.v2 import capabilities
from dodona.runners.v2.drafting.head_drafter import HeadDrafting
from dodona.runners.v2.drafting.load import hidden_states, load_drafting
from dodona.runners.v2.drafting.model_drafter import ModelDrafting
from dodona.runners.v2.loading.model import read_model
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.weights.source import weights_directory


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model whose weights are on the device."""

    model: DenseModel
    num_speculative_tokens: int
    """Most drafts of a row in a step."""
    prompts: PromptLookup | None
    """Drafts on the host."""
    drafting: HeadDrafting | ModelDrafting | None
    """Drafts on the device."""

    @property
    def spec(self) -> ModelSpec:
        """The model's."""
        return self.model.spec


def load(config: EngineConfig, info: ModelInfo, limits: Limits) -> Loaded:
    """Read a model's weights onto the device, and those of its draft.

    Raises UnsupportedConfiguration naming each feature V2 lacks (nothing is loaded then); ConfigError where
    config.json or the weights are not as they must be, or speculative_config can't be served.
    """
    check = _check(limits)
    _refuse(check(config, info))
    plan = plan_drafting(
        config, info, limits, runner="v2", lacks_of_draft=partial(capabilities.lacks_of_draft, check=check)
    )
    seen = hidden_states(plan, limits)
    model = read_model(
        info,
        limits,
        weights_directory(config, info, None),
        seed=config.model_config.seed,
        quantization=quantization_of(config, info),
        seen=seen,
    )
    return Loaded(
        model,
        0 if plan is None else plan.num_speculative_tokens,
        plan.prompts if isinstance(plan, NgramPlan) else None,
        load_drafting(plan, model, seen, config, limits),
    )


def load_pooling(
    config: EngineConfig, info: ModelInfo, limits: Limits, settings: PoolingSettings
) -> DenseModel:
    """The same for a pooling model."""
    _refuse(_check(limits)(config, info))
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


def _refuse(lacking: tuple[str, ...]) -> None:
    if lacking:
        raise UnsupportedConfiguration.lacking("v2", *lacking)
