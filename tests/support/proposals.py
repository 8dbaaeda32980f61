"""What V1 drafts while it serves requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dodona.runners.v1.drafting.drafter import DraftContext
from dodona.runners.v1.drafting.sequential import SequentialDrafter


def record_proposals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """A list that grows: the tokens of a request so far, and the drafts after them; without warm-up."""
    seen: list[tuple[list[int], list[int]]] = []
    propose = SequentialDrafter.propose

    def record(drafter: SequentialDrafter, contexts: Sequence[DraftContext]) -> Any:
        found = propose(drafter, contexts)
        seen.extend(
            (list(context.state.tokens(0, context.end + 1)), list(found[context.row]))
            for context in contexts
            if context.row in found and not context.state.request.request_id.startswith("__dodona")
        )
        return found

    monkeypatch.setattr(SequentialDrafter, "propose", record)
    return seen
