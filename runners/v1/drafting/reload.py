"""The weights of a draft are read again when those of its target are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.runners.drafting.plan import DraftPlan, HeadPlan, MtpPlan, NgramPlan
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
    if isinstance(plan, NgramPlan):
        return {}
    if isinstance(plan, HeadPlan):
        head = load_head_of(plan, target, config, limits)
        if not running.weights().keys() >= head.own_tensors().keys():
            raise _another(plan)
        found: Mapping[str, Tensor] = {**head.state_dict(), "targets": head.targets}
    elif isinstance(plan, MtpPlan):
        plan = plan if directory is None else replace(plan, directory=directory)
        found = load_mtp_of(plan, target, config, limits).own_tensors()
    else:
        # Random weights depend on the device that draws them.
        random = config.load_config.load_format == "dummy"
        device = next(target.parameters()).device if random else torch.device("cpu")
        found = load_model_of(plan, device, config, limits).state_dict()
        check_ties(running.weights(), found)
    shapes = {name: tensor.shape for name, tensor in running.weights().items()}
    if shapes != {name: found[name].shape for name in shapes if name in found}:
        raise _another(plan)
    return {name: found[name] for name in shapes}


def overwrite(running: Drafting, found: Mapping[str, Tensor]) -> None:
    """Write what `read_again` found in place."""
    with torch.no_grad():
        for name, tensor in running.weights().items():
            tensor.copy_(found[name])


def _another(plan: Any) -> ConfigError:
    return ConfigError(f"{plan.directory}: other tensors than those of the draft that runs; make a new LLM")
