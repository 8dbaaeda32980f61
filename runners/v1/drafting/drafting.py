"""What a runner keeps of a loaded draft: its KV layers, its memory, and the drafter it starts."""

from __future__ import annotations

from typing import Protocol

from dodona.runners.interface import LayerKVSpec
from dodona.runners.limits import Limits
from dodona.runners.v1.drafting.drafter import Drafter
from dodona.runners.v1.drafting.ngram import NgramDrafter
from dodona.runners.v1.drafting.plan import NgramPlan


class Drafting(Protocol):
    """A draft that is loaded; `start` gives it a KV cache."""

    @property
    def num_speculative_tokens(self) -> int:
        """Most drafts of a row."""

    @property
    def layers(self) -> tuple[LayerKVSpec, ...]:
        """KV layers beside the target's, in blocks of the same ids."""

    def fixed_bytes(self, limits: Limits) -> int:
        """Bytes that its KV cache takes beside those of the blocks."""

    def run_largest_step(self, limits: Limits) -> None:
        """Compute as much as after the largest step, for the measurement of memory."""

    def start(self, num_blocks: int) -> Drafter:
        """A drafter with a KV cache of `num_blocks` blocks, the target's."""


class NgramDrafting:
    """Prompt lookup: no model, no KV."""

    layers: tuple[LayerKVSpec, ...] = ()

    def __init__(self, plan: NgramPlan) -> None:
        self.num_speculative_tokens = plan.num_speculative_tokens
        self._plan = plan

    def fixed_bytes(self, limits: Limits) -> int:
        """Nothing."""
        return 0

    def run_largest_step(self, limits: Limits) -> None:
        """Nothing: it takes no device memory."""

    def start(self, num_blocks: int) -> Drafter:
        """A drafter that reads rows' tokens."""
        plan = self._plan
        return NgramDrafter(
            num_speculative_tokens=plan.num_speculative_tokens,
            largest=plan.prompt_lookup_max,
            smallest=plan.prompt_lookup_min,
        )
