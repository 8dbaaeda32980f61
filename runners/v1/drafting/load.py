"""Loads what a plan says."""

from __future__ import annotations

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.drafting.load_head import load_head, random_head
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, NgramPlan
from dodona.runners.limits import Limits
from dodona.runners.v1 import loading
from dodona.runners.v1.drafting.draft_model import ModelDrafting
from dodona.runners.v1.drafting.drafting import Drafting, NgramDrafting
from dodona.runners.v1.drafting.head_drafter import HeadDrafting
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.self_check import self_check
from dodona.runners.v1.served_model import ServedModel


def load_drafting(
    plan: DraftPlan, target: ServedModel, config: EngineConfig, limits: Limits, mesh: Mesh = ALONE
) -> Drafting | None:
    """The draft on the target's device, in its type.

    Where ranks share the target, the one that samples drafts, and has the draft whole; None on the others,
    which hand it the hidden states that a head asks for.

    Raises ConfigError where the weights are not those of its config.json, UnsupportedConfiguration where a
    draft model's paged path can't be trusted, or the target's layers can't be looked at.
    """
    if isinstance(plan, NgramPlan):
        return NgramDrafting(plan) if mesh.samples else None
    if not isinstance(target, PackedModel):
        raise UnsupportedConfiguration.lacking("v1", "speculative-row-by-row")
    dtype: torch.dtype = getattr(torch, limits.dtype)
    random = config.load_config.load_format == "dummy"
    if isinstance(plan, HeadPlan):
        if mesh.tensor.rank:  # its hidden states are those of the first rank
            return None
        hidden = HiddenStates(target.model, plan.head.layer_ids, mesh)
        if not mesh.samples:
            return None
        if random:
            head = random_head(
                plan.head, target.model, dtype=dtype, device=target.device, seed=config.model_config.seed
            )
        else:
            head = load_head(plan.directory, plan.head, target.model, dtype=dtype, device=target.device)
        return HeadDrafting(head, hidden, plan.num_speculative_tokens, kv_dtype=target.kv_dtype)
    if not mesh.samples:
        return None
    model = loading.load_model(
        plan.directory,
        weights=None if random else plan.directory,
        dtype=dtype,
        device=target.device,
        seed=config.model_config.seed,
        trust_remote_code=False,
    )
    draft = PackedModel(model)
    self_check(draft, max_model_len=limits.max_model_len)
    return ModelDrafting(draft, plan.num_speculative_tokens)
