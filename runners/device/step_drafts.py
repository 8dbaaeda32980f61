"""A drafter's passes after the steps of one `StepRunner`, by graphs where they are captured."""

from __future__ import annotations

import torch

from dodona.kernels.state.draft_state import step_ends
from dodona.runners.device.drafting import DeviceDrafter, StepEnds
from dodona.runners.device.forward_inputs import ForwardInputs
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
        self._drafter = drafter
        self._steps = steps
        self._entries_per_row = 1 + num_speculative_tokens
        shape = (max_num_seqs, num_speculative_tokens)
        self._proposed = torch.zeros(shape, dtype=torch.int32, device=steps.model.device)

    def propose(self, inputs: ForwardInputs, rows: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """[n, num_speculative_tokens]: drafts after any step; rows, last: see `StepEnds`."""
        positions = torch.index_select(inputs.positions, 0, last).int()
        return self._drafter.propose(inputs, StepEnds(rows, last, positions))

    def propose_verified(self, size: int, num_rows: int, graphs: StepGraphs | None) -> torch.Tensor:
        """[num_rows, num_speculative_tokens]: drafts after a step of fixed form that verified some, of `size`
        entries. The next such step's overwrite them."""
        if graphs is None:
            self._run(size, num_rows)
        else:
            graphs.replay_drafter(size)
        return self._proposed[:num_rows]

    def run(self, size: int) -> None:
        """The launches of `propose_verified`, for a capture."""
        self._run(size, size // self._entries_per_row)

    def _run(self, size: int, num_rows: int) -> None:
        steps = self._steps
        inputs = steps.single_inputs(size, has_drafts=True)
        rows, last, positions = step_ends(
            first_samples=steps.state.first_samples[:num_rows],
            rows=inputs.rows,
            seq_lens=inputs.seq_lens,
            num_kept=steps.num_kept(size),
        )
        self._drafter.propose(inputs, StepEnds(rows, last, positions), self._proposed[:num_rows])
