"""What a runner keeps of a loaded draft: what it takes of the KV cache, and the drafter it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from dodona.runners.drafting.plan import LookupPlan
from dodona.runners.interface import KVCacheSpec
from dodona.runners.limits import Limits
from dodona.runners.v1.drafting.drafter import Drafter
from dodona.runners.v1.drafting.lookup import LookupDrafter
from dodona.runners.weights.life import WeightViews


class Drafting(Protocol):
    """A draft that is loaded; `start` gives it a KV cache."""

    @property
    def num_speculative_tokens(self) -> int:
        """Most drafts of a row."""

    def extend_spec(self, spec: KVCacheSpec) -> KVCacheSpec:
        """The target's spec with what the draft keeps beside it, per block and per row."""

    def run_largest_step(self, limits: Limits) -> None:
        """Compute as much as after the largest step, for the measurement of memory."""

    def start(self, num_blocks: int, limits: Limits) -> Drafter:
        """A drafter with KV in `num_blocks` blocks of the target's ids."""

    def weights(self) -> Mapping[str, Tensor]:
        """Its tensors by name; none that are the target's."""

    def weight_views(self) -> WeightViews:
        """Its weights by the names of its checkpoint."""


class LookupDrafting:
    """Lookup in rows' own tokens: no model, no KV."""

    def __init__(self, plan: LookupPlan) -> None:
        self.num_speculative_tokens = plan.num_speculative_tokens
        self._plan = plan

    def extend_spec(self, spec: KVCacheSpec) -> KVCacheSpec:
        """The same: it keeps nothing."""
        return spec

    def run_largest_step(self, limits: Limits) -> None:
        """Nothing: it takes no device memory."""

    def start(self, num_blocks: int, limits: Limits) -> Drafter:
        """A drafter that reads rows' tokens."""
        return LookupDrafter(self._plan.lookup)

    def weights(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def weight_views(self) -> WeightViews:
        """None."""
        return WeightViews({}, {})
