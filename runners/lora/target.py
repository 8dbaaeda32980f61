"""`LoRATarget`: a linear layer of the model that adapters can change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoRATarget:
    """The sizes of a layer that computes [..., in_features] -> [..., out_features]."""

    in_features: int
    out_features: int
