"""The forms in which callers give prompts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dodona.runners.errors import InvalidRequestError

PromptLike = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, ``{"prompt": text}``, or ``{"prompt_token_ids": ids}`` (and "prompt", for show)."""

_KEYS = ("prompt", "prompt_token_ids")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text, as token ids, or as both; never neither."""

    text: str | None = None
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class RefusedPrompt:
    """Stands in a list of prompts for what could not be made one."""

    reason: str


def parse_prompt(prompt: PromptLike | RefusedPrompt) -> Prompt:
    """Raises InvalidRequestError for anything that is not a prompt."""
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if isinstance(prompt, RefusedPrompt):
        raise InvalidRequestError(prompt.reason)
    if isinstance(prompt, Mapping):
        unknown = [key for key in prompt if key not in _KEYS]
        text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if unknown or (text is None and token_ids is None):
            wrong = f"unknown key {unknown[0]!r}" if unknown else "neither is given"
            raise InvalidRequestError(f"a prompt mapping has 'prompt' or 'prompt_token_ids': {wrong}")
        if text is not None and not isinstance(text, str):
            raise InvalidRequestError(f"'prompt' must be text, got {type(text).__name__}")
        return Prompt(text, None if token_ids is None else _token_ids(token_ids))
    return Prompt(token_ids=_token_ids(prompt))


_BYTES = (bytes, bytearray, memoryview)
"""What is iterable as integers, and is no list of token ids."""


def as_prompt_list(prompts: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    """One prompt or several as a list of prompts; a list of integers is one prompt."""
    given: Any = prompts
    if isinstance(given, (str, Mapping)):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, _BYTES):
        raise InvalidRequestError(
            f"a prompt must be text, token ids or a mapping, or a list of these, got {_short(given)}"
        )
    listed = list(given)
    if listed and hasattr(listed[0], "__index__") and not hasattr(listed[0], "__len__"):
        return [listed]
    return listed


def is_single_prompt(prompts: PromptLike | Sequence[PromptLike]) -> bool:
    """Whether this is one prompt, be it one that can't be served, rather than a list of prompts."""
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Sequence) or not len(prompts):
        return True
    first: Any = prompts[0]
    return as_prompt_list([first])[0] is not first  # the integers of one prompt come back in a list


def _token_ids(token_ids: Any) -> list[int]:
    try:
        if isinstance(token_ids, _BYTES):
            raise TypeError
        return array("q", token_ids).tolist()
    except (TypeError, OverflowError):
        raise InvalidRequestError(
            f"a prompt must be text, token ids or a mapping, got {type(token_ids).__name__}: "
            f"{_short(token_ids)}"
        ) from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
