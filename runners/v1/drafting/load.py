"""Loads what a plan says."""

from __future__ import annotations

import torch
from torch import nn

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.head_config import HeadConfig
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.drafting.head import DraftHead
from dodona.runners.drafting.load_head import load_head, random_head
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, LookupPlan, ModelPlan, MtpPlan
from dodona.runners.limits import Limits
from dodona.runners.v1 import loading
from dodona.runners.v1.capabilities import compiles
from dodona.runners.v1.drafting.draft_model import ModelDrafting
from dodona.runners.v1.drafting.drafting import Drafting, LookupDrafting
from dodona.runners.v1.drafting.head_drafter import HeadDrafting
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from dodona.runners.v1.drafting.mtp_head import MtpHead, load_mtp_head, random_mtp_head
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
    if isinstance(plan, LookupPlan):
        return LookupDrafting(plan) if mesh.samples else None
    if not isinstance(target, PackedModel):
        raise UnsupportedConfiguration.lacking("v1", "speculative-row-by-row")
    if isinstance(plan, (HeadPlan, MtpPlan)):
        if mesh.tensor.rank:  # its hidden states are those of the first rank
            return None
        layer_ids = () if isinstance(plan, MtpPlan) else plan.head.layer_ids
        hidden = HiddenStates(target.model, layer_ids, mesh)
        if not mesh.samples:
            return None
        if isinstance(plan, MtpPlan):
            layer = load_mtp_of(plan, target.model, config, limits)
            return HeadDrafting(layer, hidden, plan.num_speculative_tokens, kv_dtype=target.kv_dtype)
        if mesh.size == 1 and not compiles(config):
            _check_hidden_states(hidden, target, plan.head)
        head = load_head_of(plan, target.model, config, limits)
        return HeadDrafting(head, hidden, plan.num_speculative_tokens, kv_dtype=target.kv_dtype)
    if not mesh.samples:
        return None
    draft = PackedModel(load_model_of(plan, target.device, config, limits))
    self_check(draft, max_model_len=limits.max_model_len)
    return ModelDrafting(draft, plan.num_speculative_tokens)


def _check_hidden_states(hidden: HiddenStates, target: PackedModel, head: HeadConfig) -> None:
    """Raise UnsupportedConfiguration where a pass does not leave one hidden state of each token, as in models
    that pass on several side by side."""
    with torch.inference_mode(), target.plain() as plain:
        plain(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=target.device), use_cache=False)
    found = tuple(hidden.batched().shape)
    expected = (1, 2, head.target_hidden_size * max(1, len(head.layer_ids)))
    if found != expected:
        raise UnsupportedConfiguration.lacking(
            "v1",
            "speculative-hidden-states",
            why=f"{target.name} leaves hidden states of shape {found} where a head takes {expected}",
        )


def load_head_of(plan: HeadPlan, target: nn.Module, config: EngineConfig, limits: Limits) -> DraftHead:
    """The head, from its files or random, on the target's device."""
    dtype: torch.dtype = getattr(torch, limits.dtype)
    device = next(target.parameters()).device
    if config.load_config.load_format == "dummy":
        return random_head(plan.head, target, dtype=dtype, device=device, seed=config.model_config.seed)
    return load_head(plan.directory, plan.head, target, dtype=dtype, device=device)


def load_mtp_of(plan: MtpPlan, target: nn.Module, config: EngineConfig, limits: Limits) -> MtpHead:
    """The MTP layer, from the target's files or random, on the target's device."""
    dtype: torch.dtype = getattr(torch, limits.dtype)
    if config.load_config.load_format == "dummy":
        return random_mtp_head(target, dtype=dtype, seed=config.model_config.seed)
    return load_mtp_head(plan.directory, target, dtype=dtype)


def load_model_of(plan: ModelPlan, device: torch.device, config: EngineConfig, limits: Limits) -> nn.Module:
    """The draft model, from its files or random."""
    random = config.load_config.load_format == "dummy"
    return loading.load_model(
        plan.directory,
        weights=None if random else plan.directory,
        dtype=getattr(torch, limits.dtype),
        device=device,
        seed=config.model_config.seed,
        trust_remote_code=False,
    )
