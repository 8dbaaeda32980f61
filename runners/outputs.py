"""The outputs that callers get, in vLLM's shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability of a token, by the model's raw logits."""

    logprob: float
    rank: int
    """1 for the most probable token."""
    decoded_token: str | None
    """The token's text by itself; None without a tokenizer."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated sequence; in a stream, what is new of it."""

    index: int
    """Which of the request's n sequences."""
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    """Sum over the tokens so far, where `logprobs` or `logprob_token_ids` was asked for."""
    logprobs: list[dict[int, Logprob]] | None
    """Per token: the token itself first, then the most probable ones, then those asked for by id."""
    finish_reason: str | None = None
    """None while it goes on; "stop" (a stop token or string), "length", "abort", or "error"."""
    stop_reason: int | str | None = None
    """The stop string or token id that ended it; None at the model's end-of-sequence tokens."""
    num_draft_tokens: int = 0
    """With speculative decoding: drafts that were verified so far."""
    num_accepted_tokens: int = 0
    """Those of them that were accepted."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and what was generated for it; in a stream, what is new of it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    """Per prompt token, None for the first; the whole is None unless asked for."""
    outputs: list[CompletionOutput]
    """The n sequences; in a stream, those with news."""
    finished: bool
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was taken from the prefix cache."""
    error: str | None = None
    """Why the request could not be served; its finish_reason is then "error"."""
