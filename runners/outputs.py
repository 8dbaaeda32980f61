"""The outputs that callers get, in vLLM's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """A pooling model's output as it is."""

    data: npt.NDArray[np.float32]
    """An embedding [size], a sequence's classes [classes], or those of each token [tokens, classes]."""
    labels: tuple[str, ...] = ()
    """Names of the classes."""


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A prompt's embedding."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """A prompt's classes."""

    probs: list[float]
    """One for each class: probabilities, or logits where no activation was asked for."""
    labels: tuple[str, ...]
    """Names of the classes."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.probs)

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.labels[max(range(len(self.probs)), key=self.probs.__getitem__)]


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """How well a document fits a query."""

    score: float
    """A cross-encoder's class, or the cosine of two embeddings."""


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput(Generic[T]):
    """A prompt and what a pooling model made of it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: T | None
    """None where there is an `error`."""
    finished: bool = True
    error: str | None = None
    """Why the prompt could not be served."""
