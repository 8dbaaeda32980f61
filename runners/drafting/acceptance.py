"""Which drafts are accepted."""

from __future__ import annotations

from collections.abc import Sequence


def num_agreeing(token_ids: Sequence[int], drafts: Sequence[int]) -> int:
    """How many drafts, from the first on, are the token sampled in their place."""
    for count, (token_id, draft) in enumerate(zip(token_ids, drafts, strict=False)):
        if token_id != draft:
            return count
    return len(drafts)
