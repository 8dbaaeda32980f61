"""`LoRATarget`: a linear layer of the model that adapters can change, and which can't have any."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LoRATarget:
    """The sizes of a layer that computes [..., in_features] -> [..., out_features]."""

    in_features: int
    out_features: int
    is_head: bool = False
    """One of a classifier's last layers: an adapter may bring another in its place (PEFT's
    `modules_to_save`)."""
    has_bias: bool = False
    dtype: torch.dtype = torch.float32
    """In which adapters are computed."""


def is_expert(name: str) -> bool:
    """Whether a module of this name is one of several experts, or in one."""
    return any("expert" in part and "shared" not in part for part in name.split("."))
