"""The weights of a draft are read again when those of its target are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dodona.oracle.config.engine_config import EngineConfig
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, LookupPlan, MtpPlan
from dodona.runners.drafting.weights import fitting, head_tensors
from dodona.runners.limits import Limits
from dodona.runners.v1.drafting.drafting import Drafting
from dodona.runners.v1.drafting.load import load_head_of, load_model_of, load_mtp_of
from dodona.runners.v1.model_weights import check_ties


def read_again(
    plan: DraftPlan,
    running: Drafting,
    target: Any,
    config: EngineConfig,
    limits: Limits,
    *,
    directory: Path | None,
) -> Mapping[str, Tensor]:
    """By the names of `running.weights()`, the draft's tensors as its files have them now, or random ones.

    target: the module that is drafted for. What a head borrows of it, and the running head has for itself,
    is the target's tensor, which may be written before it is read.
    directory: where the target's weights come from; those of an MTP layer do, too.

    Raises ConfigError where the files have other tensors than the running draft.
    """
    if isinstance(plan, LookupPlan):
        return {}
    if isinstance(plan, HeadPlan):
        head = load_head_of(plan, target, config, limits)
        return head_tensors(running.weights(), head, plan.directory)
    if isinstance(plan, MtpPlan):
        plan = plan if directory is None else replace(plan, directory=directory)
        found: Mapping[str, Tensor] = load_mtp_of(plan, target, config, limits).own_tensors()
    else:
        # Random weights depend on the device that draws them.
        random = config.load_config.load_format == "dummy"
        device = next(target.parameters()).device if random else torch.device("cpu")
        found = load_model_of(plan, device, config, limits).state_dict()
        check_ties(running.weights(), found)
    return fitting(running.weights(), found, plan.directory)
