"""Buffers for sampled tokens that are being copied to the host while later steps run."""

from __future__ import annotations

import torch


class SampleRing:
    """What the last few steps of fixed form sampled, each in a slot of its own.

    A step's tokens are copied to the host while the next steps run. A captured graph is the same each time,
    so where its tokens go is data on the device: `turn`, which the step itself moves on. The host counts
    along, step by step, and never reads it.

    Args:
        num_slots: more than the steps whose tokens may be uncopied at a time.
        max_num_tokens: most tokens of a step.
        device: where the steps run.
        verifies: whether steps may verify drafts.
    """

    def __init__(
        self, *, num_slots: int, max_num_tokens: int, device: torch.device, verifies: bool = False
    ) -> None:
        self.tokens = torch.zeros((num_slots, max_num_tokens), dtype=torch.int32, device=device)
        """[slots, max_num_tokens]."""
        shape = (num_slots, max_num_tokens if verifies else 0, 2)
        self.verified = torch.zeros(shape, dtype=torch.int32, device=device)
        """[slots, max_num_tokens, 2]: of steps that verify drafts, tokens, each with what is kept of its
        row."""
        self.turn = torch.zeros(1, dtype=torch.int32, device=device)
        """[1]: slot of the step that the device is at."""
        self.num_slots = num_slots
        self._slots = self.tokens.unbind()
        self._verified_slots = self.verified.unbind()
        self._launched = 0
        """Slot of the step that was launched last."""

    def advance(self) -> None:
        """A step is launched that moves `turn` on."""
        self._launched = (self._launched + 1) % self.num_slots

    def launched(self, size: int) -> torch.Tensor:
        """[size]: the first tokens of the step that was launched last."""
        return self._slots[self._launched][:size]

    def launched_verified(self, size: int) -> torch.Tensor:
        """[size, 2]: the first tokens of the step that was launched last, which verified drafts."""
        return self._verified_slots[self._launched][:size]

    def restart(self) -> None:
        """Reset the counters of host and device after steps without a call of `advance`. All tokens of
        earlier steps must have been copied."""
        self.turn.zero_()
        self._launched = 0
