"""What V1 refuses after it has read a model: tried on a model without values, see `meta_device.on_meta`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, ModelPlan, MtpPlan
from dodona.runners.limits import Limits
from dodona.runners.meta_device import NeedsValues
from dodona.runners.v1.choice import choose, reason
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from dodona.runners.v1.drafting.load import load_head_of, load_model_of, load_mtp_of
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.packed_model import PLAIN_ATTENTION, PackedModel, set_attention
from dodona.runners.v1.row_model import RowModel

_FEW_TOKENS = 4


def try_load(
    module: torch.nn.Module,
    plan: DraftPlan | None,
    config: EngineConfig,
    limits: Limits,
    *,
    need_packing: Sequence[str],
) -> None:
    """Raise UnsupportedConfiguration where the model computes no prompt, or can't be packed for
    `need_packing`; ConfigError where the weights of what drafts are not those of its config.json.

    What needs the most values comes last: it may end by NeedsValues.
    """
    try:
        # Whichever way is chosen is compared with this one.
        RowModel(module, max_model_len=_FEW_TOKENS, continuation="none")
    except UnsupportedConfiguration:
        with suppress(NeedsValues):  # for the words of a start
            choose(module, max_model_len=limits.max_model_len, need_packing=need_packing)
        raise
    if isinstance(plan, HeadPlan):
        load_head_of(plan, module, config, limits)
        HiddenStates(module, plan.head.layer_ids)
    elif isinstance(plan, MtpPlan):
        load_mtp_of(plan, module, config, limits)
        HiddenStates(module, ())
    elif isinstance(plan, ModelPlan):
        draft = load_model_of(plan, next(module.parameters()).device, config, limits)
        RowModel(draft, max_model_len=_FEW_TOKENS, continuation="none")
        PackedModel(draft)
    if need_packing:
        try:
            PackedModel(module)
        except UnsupportedConfiguration as error:
            raise UnsupportedConfiguration.lacking("v1", *need_packing, why=reason(error)) from error
    if config.lora_config is not None:
        set_attention(module, PLAIN_ATTENTION)
        LoRALayers(module, config.lora_config)
