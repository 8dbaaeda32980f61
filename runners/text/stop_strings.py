"""Text that ends at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from dodona.runners.errors import InvalidRequestError
from dodona.runners.text.detokenizer import IncrementalText


def find_stop(text: str, stops: Sequence[str], searched: int) -> tuple[int, int] | None:
    """Where the stop string lies that is complete first (of these, the longest), as (begin, end).

    Only ends after `searched` count: no stop string ends in `text[:searched]`, or none there may.

    >>> find_stop("one two", ("two", "e t"), 0)
    (2, 5)
    """
    first: tuple[int, int] | None = None
    for stop in stops:
        begin = text.find(stop, max(0, searched - len(stop) + 1))
        if begin >= 0:
            found = (begin, begin + len(stop))
            if first is None or (found[1], found[0]) < (first[1], first[0]):
                first = found
    return first


def possible_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the text's end may be the beginning of a stop string.

    >>> possible_stop("a b STO", ("STOP", "TOO"))
    3
    """
    longest = 0
    for stop in stops:
        begin = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while 0 <= begin < len(text) - longest:
            if stop.startswith(text[begin:]):
                longest = len(text) - begin
                break
            begin = text.find(stop[0], begin + 1)
    return longest


class StopStringText:
    """The text of a request with stop strings, made as its tokens are read."""

    def __init__(
        self,
        text: IncrementalText,
        stops: Sequence[str],
        *,
        include_stop_string: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._incremental = text
        self._stops = tuple(stops)
        self._include_stop_string = include_stop_string
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._finished = False
        self._num_taken = 0
        self.text = ""
        self.error: str | None = None
        """Why the text doesn't go on."""

    def add(self, token_id: int) -> str | None:
        """Append a token; returns the stop string if there is one now, and the text ends there."""
        searched = len(self.text)
        try:
            self.text += self._incremental.add((token_id,))
        except InvalidRequestError as error:
            self.error = str(error)
            return None
        self._num_tokens += 1
        if self._num_tokens <= self._min_tokens or len(self.text) == searched:
            return None
        found = find_stop(self.text, self._stops, searched)
        if found is None:
            return None
        begin, end = found
        stop = self.text[begin:end]
        self.text = self.text[: end if self._include_stop_string else begin]
        self._finished = True
        return stop

    def finish(self, token_id: int | None) -> None:
        """End the text without a stop string: with one more token, if given, and all that is held back."""
        try:
            self.text += self._incremental.finish(() if token_id is None else (token_id,))
        except InvalidRequestError as error:
            self.error = str(error)
        self._finished = True

    def take(self) -> str:
        """The text that is certain to stay and was not taken before."""
        end = len(self.text)
        if not self._finished and not self._include_stop_string:
            end -= possible_stop(self.text, self._stops)
        new = self.text[self._num_taken : end]
        self._num_taken = end
        return new
