"""Drafts by lookup in rows' own tokens, on the host, once a step is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dodona.runners.drafting.plan import HostLookup
from dodona.runners.interface import PendingOutput, SchedulerOutput, StepOutput


class LookupDrafter:
    """Keeps the tokens of each row, and looks up what followed the last ones."""

    def __init__(self, lookup: HostLookup) -> None:
        self._lookup = lookup
        self._token_ids: dict[int, list[int]] = {}

    def begin(self, step: SchedulerOutput) -> None:
        """Take note of the requests that leave and enter rows. All steps before were read."""
        for row in step.freed_rows:
            self._token_ids.pop(row, None)
        for request in step.new_requests:
            self._token_ids[request.row] = list(request.token_ids)

    def propose(self, output: StepOutput) -> StepOutput:
        """The output with drafts of what follows the tokens in it."""
        drafts = {}
        for row, token_id in zip(output.rows, output.token_ids, strict=True):
            token_ids = self._token_ids[row]
            token_ids.append(token_id)
            if row in output.further:
                token_ids += output.further[row].token_ids
            found = self._lookup.lookup(token_ids)
            if found:
                drafts[row] = found
        return replace(output, draft_token_ids=drafts)


@dataclass(frozen=True, slots=True)
class WithDrafts:
    """A step under way, whose result gets drafts."""

    pending: PendingOutput
    drafter: LookupDrafter

    def result(self) -> StepOutput:
        """Wait for the step, and look up."""
        return self.drafter.propose(self.pending.result())
