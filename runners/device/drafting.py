"""What steps on the device ask of a drafter that drafts there, from state that never leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.state import RequestState
from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True, eq=False)
class StepEnds:
    """The rows of a step that sampled, once their tokens are in the state."""

    rows: torch.Tensor
    """[n] int32: state rows."""
    last: torch.Tensor
    """[n] int32: packed index of each row's last token that is kept. The token after it was drawn by the
    step."""
    positions: torch.Tensor
    """[n] int32: that token's position."""


class DeviceDrafter(Protocol):
    """Proposes tokens. What it proposes changes how many steps an output takes, never the output."""

    def propose(self, inputs: ForwardInputs, ends: StepEnds, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, num_speculative_tokens] int32: drafts of what follows each row's tokens. They are written into
        the token history, too, where the next step verifies as many of them as it describes.

        inputs: the step, whose tokens it computes, too, where it has a KV cache of its own. `ends` may be of
            no row: then nothing is drafted.
        out: [n, num_speculative_tokens] int32, contiguous, to write into; None for a new one.
        """


class DeviceDrafting(Protocol):
    """A draft that is loaded; `start` gives it a KV cache."""

    num_speculative_tokens: int

    @property
    def own_blocks(self) -> int:
        """KV blocks of each row's own, beside those of the target's ids."""

    def start(
        self, state: RequestState, sampler: DeviceSampler, limits: Limits, *, num_blocks: int
    ) -> DeviceDrafter:
        """A drafter with KV in `num_blocks` blocks of the target's ids, and after them in those of the
        rows."""
