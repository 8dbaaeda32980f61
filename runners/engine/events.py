"""What the engine's thread tells a request's caller, and by which way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dodona.runners.sampling.token_logprobs import TokenLogprobs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Progress(NamedTuple):
    """The news of one sequence since its last Progress; all of it in one piece unless the request streams.

    A plain value: it holds nothing that the engine's thread will change. (A named tuple because a step makes
    one per streaming request, and a frozen dataclass of as many fields takes twice as long to make.)
    """

    request_id: str
    """The id that the caller knows, which is the same for all n sequences of a prompt."""
    sequence_index: int
    """Which of the prompt's n sequences."""
    token_ids: tuple[int, ...]
    """New tokens."""
    logprobs: tuple[TokenLogprobs, ...]
    """One per new token where the request asks for log-probabilities, else empty."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None
    """One per prompt token but the first: in the sequence's first Progress, where the request asks; else
    None."""
    num_cached_tokens: int
    """Prompt tokens whose KV was found in the prefix cache."""
    text: str | None
    """The new text of a request with stop strings, which the engine looks for; None without stop strings."""
    finish_reason: str | None
    """None while the sequence goes on; "stop", "length", "abort" or "error"."""
    stop_reason: int | str | None
    """The stop string or token id that ended the sequence; None at the model's end-of-sequence tokens."""
    error: str | None
    """Why the sequence ended, with the finish reason "error"."""
    num_draft_tokens: int = 0
    """Drafts of the sequence that were verified, from its beginning on."""
    num_accepted_tokens: int = 0
    """Those of them that were accepted."""
    pooled: npt.NDArray[np.float32] | None = None
    """What a pooling model made of the prompt."""


Event = Progress | None
"""None: the engine has ended, and nothing more of this sequence will come."""

Sink = Callable[[Event], object]
"""Takes the events of a request, in order, in the engine's thread: it must not block, and must not raise.

A queue's `put` is one; ``functools.partial(loop.call_soon_threadsafe, callback)`` hands them to an event
loop.
"""


def discard(event: Event) -> None:
    """The sink of a request whose news nobody wants."""
