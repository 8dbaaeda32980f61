"""Which drafts are accepted, and what a step yields by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dodona.runners.interface import FurtherTokens, StepOutput
from dodona.runners.sampling.token_logprobs import TokenLogprobs


def num_agreeing(token_ids: Sequence[int], drafts: Sequence[int]) -> int:
    """How many drafts, from the first on, are the token sampled in their place."""
    for count, (token_id, draft) in enumerate(zip(token_ids, drafts, strict=False)):
        if token_id != draft:
            return count
    return len(drafts)


def accepted_output(
    rows: Sequence[int],
    drafts: Mapping[int, Sequence[int]],
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]],
    num_kept: Sequence[int] | None = None,
) -> StepOutput:
    """The output of a step whose rows were sampled after their last token and after each of their drafts.

    Args:
        rows: that sampled, in batch order.
        drafts: that were verified, by row.
        token_ids: of all rows, one after another: 1 + k of a row with k drafts.
        logprobs: parallel to `token_ids`; None where the row asks for none.
        prompt_logprobs: those of the output.
        num_kept: parallel to `token_ids`, where it was counted: at a row's first token how many of its tokens
            are kept.
    """
    if not drafts and num_kept is None:
        known = {row: entry for row, entry in zip(rows, logprobs, strict=True) if entry is not None}
        return StepOutput(rows, token_ids, known, prompt_logprobs)
    first_ids: list[int] = []
    first_logprobs: dict[int, TokenLogprobs] = {}
    further: dict[int, FurtherTokens] = {}
    place = 0
    for row in rows:
        verified = drafts.get(row, ())
        end = place + 1 + len(verified)
        own = token_ids[place:end]
        count = num_agreeing(own, verified) + 1 if num_kept is None else num_kept[place]
        wanted = [entry for entry in logprobs[place : place + count] if entry is not None]
        place = end
        first_ids.append(own[0])
        if wanted:
            first_logprobs[row] = wanted[0]
        if count > 1:
            further[row] = FurtherTokens(own[1:count], wanted[1:])
    return StepOutput(rows, first_ids, first_logprobs, prompt_logprobs, further)
