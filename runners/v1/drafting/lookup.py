"""Drafts by lookup in rows' own tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dodona.runners.drafting.plan import HostLookup
from dodona.runners.v1.drafting.drafter import DraftContext


class LookupDrafter:
    """Looks up what followed each row's last tokens."""

    def __init__(self, lookup: HostLookup) -> None:
        self._lookup = lookup

    def propose(self, contexts: Sequence[DraftContext]) -> Mapping[int, Sequence[int]]:
        """Drafts by row, for rows with an earlier occurrence."""
        drafts = {}
        for context in contexts:
            if context.wants_drafts:
                found = self._lookup.lookup(context.state.tokens(0, context.end + 1))
                if found:
                    drafts[context.row] = found
        return drafts
