"""Loads a draft that drafts on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.drafting.head import DraftHead
from dodona.runners.drafting.load_head import load_head, random_head
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, ModelPlan
from dodona.runners.drafting.weights import fitting, head_tensors
from dodona.runners.limits import Limits
from dodona.runners.v2.drafting.head_drafter import HeadDrafting
from dodona.runners.v2.drafting.model_drafter import ModelDrafting
from dodona.runners.v2.loading.model import read_model, read_weights, weight_views
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.hidden_states import LAST_HIDDEN_STATE, HiddenStates
from dodona.runners.v2.models.weights import allocate_weights

Drafting = HeadDrafting | ModelDrafting
"""A draft that is loaded."""


def hidden_states(plan: DraftPlan | None, limits: Limits) -> HiddenStates | None:
    """What the draft of a plan sees of its target; None where it sees nothing."""
    if not isinstance(plan, HeadPlan):
        return None
    return HiddenStates(
        plan.head.layer_ids or (LAST_HIDDEN_STATE,),
        hidden_size=plan.head.target_hidden_size,
        max_num_tokens=max(limits.max_num_batched_tokens, limits.max_num_seqs),
        dtype=getattr(torch, limits.dtype),
        device=torch.device(limits.device),
    )


def load_drafting(
    plan: DraftPlan | None,
    target: DenseModel,
    seen: HiddenStates | None,
    config: EngineConfig,
    limits: Limits,
) -> Drafting | None:
    """The draft on the target's device, in its type; None where the host drafts, or nobody.

    Raises ConfigError where the weights are not those of its config.json, or V2 can't run it.
    """
    random, seed = config.load_config.load_format == "dummy", config.model_config.seed
    if isinstance(plan, ModelPlan):
        # Drafts reach beyond the longest sequence.
        longer = replace(limits, max_model_len=limits.max_model_len + plan.num_speculative_tokens + 1)
        info = ModelInfo.load(plan.directory)
        model = read_model(info, longer, None if random else plan.directory, seed=seed)
        return ModelDrafting(model, plan.num_speculative_tokens, block_size=limits.block_size)
    if not isinstance(plan, HeadPlan) or seen is None:
        return None
    head = _load_head(plan, target, config)
    return HeadDrafting(head, seen, plan.num_speculative_tokens, directory=plan.directory, limits=limits)


def read_again(
    plan: HeadPlan | ModelPlan, running: Drafting, target: DenseModel, config: EngineConfig
) -> Mapping[str, Tensor]:
    """By the names of `running.weights()`, the draft's tensors as its files have them now, or random ones;
    see `head_tensors`. Raises ConfigError where the files have other tensors than the running draft."""
    if isinstance(plan, HeadPlan):
        return head_tensors(running.weights(), _load_head(plan, target, config), plan.directory)
    assert isinstance(running, ModelDrafting)
    random, spec = config.load_config.load_format == "dummy", running.model.spec
    # Random weights depend on the device that draws them.
    device = target.device if random else torch.device("cpu")
    fresh = DenseModel(spec, allocate_weights(spec, device))
    read_weights(fresh, None if random else plan.directory, seed=config.model_config.seed)
    return fitting(running.weights(), weight_views(fresh).views, plan.directory)


def _load_head(plan: HeadPlan, target: DenseModel, config: EngineConfig) -> DraftHead:
    parts, dtype, device = TargetParts(target), target.dtype, target.device
    if config.load_config.load_format == "dummy":
        return random_head(plan.head, parts, dtype=dtype, device=device, seed=config.model_config.seed)
    return load_head(plan.directory, plan.head, parts, dtype=dtype, device=device)


class TargetParts(nn.Module):
    """Embedding and head of a model, where a draft head looks for them. They share the model's memory."""

    def __init__(self, model: DenseModel) -> None:
        super().__init__()
        weights = model.weights
        self._embedding = nn.Embedding.from_pretrained(weights.embedding)  # type: ignore[no-untyped-call]
        self._lm_head = nn.Linear(
            weights.lm_head.shape[1], weights.lm_head.shape[0], bias=False, device="meta"
        )
        self._lm_head.weight = nn.Parameter(weights.lm_head, requires_grad=False)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        embedding: nn.Module = self._embedding
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self._lm_head
