"""What V1 makes of a model without values (see `meta_device.on_meta`): what it refuses after it has read one,
and how it would serve it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import Mesh
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, LookupPlan, ModelPlan, MtpPlan
from dodona.runners.limits import Limits
from dodona.runners.meta_device import NeedsValues
from dodona.runners.v1.choice import Checks, choose
from dodona.runners.v1.drafting.draft_model import ModelDrafting
from dodona.runners.v1.drafting.drafting import Drafting, LookupDrafting
from dodona.runners.v1.drafting.head_drafter import HeadDrafting
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from dodona.runners.v1.drafting.load import load_head_of, load_model_of, load_mtp_of
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.row_model import RowModel
from dodona.runners.v1.self_check import SelfCheck
from dodona.runners.v1.served_model import ServedModel
from dodona.runners.v1.tensor_parallel import LinearShare

_FEW_TOKENS = 4
NOT_CHECKED = SelfCheck(0.0, 0.0, 0.0, (0, 0))
"""In place of the self-check of a model without values."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model and what drafts for it, as a start would serve them."""

    model: ServedModel
    drafting: Drafting | None


def try_load(
    module: torch.nn.Module,
    shares: Mapping[str, LinearShare],
    plan: DraftPlan | None,
    config: EngineConfig,
    limits: Limits,
    mesh: Mesh,
    *,
    need_packing: Sequence[str],
    rope_changes_beyond: int | None,
    is_row_by_row: bool,
) -> Served:
    """What `choice.choose` and `load_drafting` would make of the module, were their self-checks passed.

    is_row_by_row: whether the rule book says that models of its type can't be packed.

    Raises UnsupportedConfiguration where the model computes no prompt, or can't be packed for `need_packing`;
    ConfigError where the weights of what drafts are not those of its config.json. What needs the most values
    comes last: it may end by NeedsValues.
    """
    try:
        # Whichever way is chosen is compared with this one.
        RowModel(module, max_model_len=_FEW_TOKENS, continuation="none")
    except UnsupportedConfiguration:
        with suppress(NeedsValues):  # for the words of a start
            choose(module, max_model_len=limits.max_model_len, mesh=mesh, need_packing=need_packing)
        raise
    draft = _load_draft(plan, module, config, limits, mesh)
    model = choose(
        module,
        max_model_len=limits.max_model_len,
        mesh=mesh,
        rope_changes_beyond=rope_changes_beyond,
        need_packing=need_packing,
        checks=Checks(packed=_compare_nothing, rows=_compare_nothing),
        is_row_by_row=is_row_by_row,
    ).model
    if config.lora_config is not None:
        with model.plain() as plain:
            LoRALayers(plain, config.lora_config, shares)
    return Served(model, None if plan is None or not mesh.samples else _drafting(plan, draft, model))


def copy_of(module: torch.nn.Module | None) -> torch.nn.Module | None:
    """Another module of the same layers, which shares the weights without values; None where a model's own
    code keeps it from being copied."""
    if module is None:
        return None
    weights = (*module.parameters(), *module.buffers())
    try:
        return copy.deepcopy(module, {id(weight): weight for weight in weights if weight.is_meta})
    except Exception:
        return None


def _compare_nothing(model: ServedModel, **_: Any) -> SelfCheck:
    return NOT_CHECKED


def _load_draft(
    plan: DraftPlan | None, module: torch.nn.Module, config: EngineConfig, limits: Limits, mesh: Mesh
) -> Any:
    """The module that drafts, and what it sees of its target; None for lookups, and on ranks that don't
    sample: a stage before the last one hands on what a head sees."""
    if isinstance(plan, (HeadPlan, MtpPlan)):
        hidden = HiddenStates(module, () if isinstance(plan, MtpPlan) else plan.head.layer_ids, mesh)
        if not mesh.samples:
            return None
        if isinstance(plan, MtpPlan):
            return load_mtp_of(plan, module, config, limits), hidden
        return load_head_of(plan, module, config, limits), hidden
    if isinstance(plan, ModelPlan) and mesh.samples:
        draft = load_model_of(plan, next(module.parameters()).device, config, limits)
        RowModel(draft, max_model_len=_FEW_TOKENS, continuation="none")
        return PackedModel(draft)
    return None


def _drafting(plan: DraftPlan, draft: Any, target: ServedModel) -> Drafting:
    if isinstance(plan, LookupPlan):
        return LookupDrafting(plan)
    if isinstance(plan, ModelPlan):
        return ModelDrafting(draft, plan.num_speculative_tokens)
    head, hidden = draft
    return HeadDrafting(head, hidden, plan.num_speculative_tokens, kv_dtype=target.kv_dtype)
