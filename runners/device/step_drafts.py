"""A drafter's passes after the steps of one `StepRunner`, by graphs where they are captured."""

from __future__ import annotations

import torch

from dodona.runners.device.drafting import DeviceDrafter, StepEnds
from dodona.runners.device.graphs import StepGraphs
from dodona.runners.device.step import StepRunner


class StepDrafts:
    """Drafts after each step. After a step of fixed form that verified drafts, they are drawn in tensors that
    stay where they are, for as many rows as its size holds with all their drafts; some of these may be
    padding.

    Args:
        drafter: whose passes they are.
        steps: whose steps they come after.
        max_num_seqs: most rows.
        num_speculative_tokens: drafts of a row.
    """

    def __init__(
        self, drafter: DeviceDrafter, steps: StepRunner, *, max_num_seqs: int, num_speculative_tokens: int
    ) -> None:
        device = steps.model.device
        self.drafter = drafter
        self._steps = steps
        self._entries_per_row = 1 + num_speculative_tokens
        self._rows = torch.full((max_num_seqs,), -1, dtype=torch.int32, device=device)
        self._last = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        shape = (max_num_seqs, num_speculative_tokens)
        self._proposed = torch.zeros(shape, dtype=torch.int32, device=device)

    def propose(self, size: int, ends: StepEnds, graphs: StepGraphs | None) -> torch.Tensor:
        """[n, num_speculative_tokens]: drafts after a step of `size` entries of one token."""
        if graphs is None:
            return self.drafter.propose(self._steps.single_inputs(size), ends)
        count = len(ends.rows)
        self._rows.fill_(-1)
        self._rows[:count].copy_(ends.rows)
        self._last.zero_()
        self._last[:count].copy_(ends.last)
        graphs.replay_drafter(size)
        return self._proposed[:count]

    def run(self, size: int) -> None:
        """The launches of `propose`, for a capture."""
        count = size // self._entries_per_row
        ends = StepEnds(self._rows[:count], self._last[:count])
        self._proposed[:count].copy_(self.drafter.propose(self._steps.single_inputs(size), ends))
