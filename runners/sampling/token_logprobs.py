"""Log-probabilities at one position, as engine and callers get them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, from the raw logits (before temperature, penalties and masks).

    `token_ids[0]` is the sampled or prompt token, and `rank` its rank from 1. Then come the top-n tokens,
    most probable first, and last the tokens of `SamplingParams.logprob_token_ids`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int
    given_ranks: tuple[int, ...] = ()
    """Ranks of the tokens of `SamplingParams.logprob_token_ids`."""
