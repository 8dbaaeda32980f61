"""What the engine's thread tells those who wait for a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dodona.runners.engine.request import Request
from dodona.runners.interface import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Progress:
    """What is new of a request; everything in one piece unless it streams."""

    request: Request
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs]
    """One per token where the request asks for them."""
    text: str | None
    """The new text, where the engine made it in search of stop strings."""
    finish_reason: str | None
    stop_reason: int | str | None

    @classmethod
    def of(cls, request: Request) -> Progress:
        """The request's news since the last time."""
        first = request.num_delivered_tokens
        request.num_delivered_tokens = request.num_output_tokens
        return cls(
            request=request,
            token_ids=request.token_ids[request.num_prompt_tokens + first :],
            logprobs=request.logprobs[first:],
            text=None if request.text is None else request.text.take(),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
        )


Event = Progress | None
"""None: the engine has ended."""
