"""From token ids to text, whole or as they come."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from dodona.oracle.printable import short
from dodona.runners.errors import InvalidRequestError
from dodona.runners.third_party import first_line, is_third_party

PROMPT_CONTEXT = 6
"""Prompt tokens that the output's text is decoded after: some tokenizers drop a space at the beginning."""

REPLACEMENT = "\ufffd"
"""Decoders write this for bytes that are not, or not yet, a character."""

MOST_HELD = 16
"""Most tokens whose text is held back because it ends within a character; after that, such bytes count as
invalid."""


MAX_BYTES_PER_CHARACTER = 4
"""In UTF-8."""


class Detokenizer:
    """Decodes with a transformers tokenizer: the same text from the same ids, no tidying of spaces."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The fast tokenizer inside, where there is one: the wrapper around it costs several times as much.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._byte_ids = _byte_ids(tokenizer, self._backend)
        self._tokens: dict[int, str] = {}

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of these tokens; ids that the tokenizer doesn't know have none.

        Raises InvalidRequestError where the tokenizer fails.
        """
        if skip_special_tokens or spaces_between_special_tokens:
            return self._decode(token_ids, skip_special_tokens)
        parts = []
        for special, group in groupby(token_ids, self._special_ids.__contains__):
            run = list(group)
            parts.append("".join(map(self.token, run)) if special else self._decode(run, False))
        return "".join(parts)

    @property
    def joins_bytes(self) -> bool:
        """Whether the decoder joins runs of tokens that stand for one byte each."""
        return bool(self._byte_ids)

    def continues_bytes(self, token_id: int, *, skip_special_tokens: bool) -> bool | None:
        """Whether a later token may change the text of this one, since both are bytes of one run.

        Decoders with byte fallback look at a whole run of such tokens, and where it is not UTF-8 as a whole,
        each of its bytes is invalid. None: the token leaves that as it was, because it is skipped.
        """
        if token_id in self._byte_ids:
            return True
        return None if skip_special_tokens and token_id in self._special_ids else False

    def token(self, token_id: int) -> str:
        """The text of one token by itself, special or not."""
        text = self._tokens.get(token_id)
        if text is None:
            try:
                text = self._decode([token_id], False)
            except InvalidRequestError:
                text = REPLACEMENT
            self._tokens[token_id] = text
        return text

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        try:
            if self._backend is not None:
                return str(self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens))
            return str(
                self._tokenizer.decode(
                    token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
                )
            )
        except BaseException as error:
            if not is_third_party(error):
                raise
            raise InvalidRequestError(
                f"the tokenizer can't decode {short(list(token_ids))}: {first_line(error)}"
            ) from error


def _byte_ids(tokenizer: Any, backend: Any) -> frozenset[int]:
    """The tokens that stand for one byte each (`<0x0A>`), where the decoder joins runs of them."""
    if backend is None or backend.decoder is None or "ByteFallback" not in repr(backend.decoder):
        return frozenset()
    found = (tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(i for i in found if i is not None and i != tokenizer.unk_token_id)


class IncrementalText:
    """Text of a growing sequence. The pieces that are given out add up to the text of all tokens decoded at
    once.

    A token may end within a character; then its text waits for the next tokens. Each addition costs the same,
    however long the text is.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = detokenizer
        self._skip_special_tokens = skip_special_tokens
        self._spaces_between_special_tokens = spaces_between_special_tokens
        # Decoding a window that starts one addition earlier gives the new tokens their left context.
        self._window = list(prompt_token_ids[-PROMPT_CONTEXT:])
        while self._window and self._continues_bytes(self._window[-1]):
            del self._window[-1]  # the output's first bytes would change the prompt's text
        self._given_text = self._decode(self._window)
        if self._given_text.endswith(REPLACEMENT):  # the prompt ends within a character
            self._window = []
            self._given_text = ""
        self._num_given = len(self._window)
        self._within_bytes = False

    def add(self, token_ids: Sequence[int]) -> str:
        """Append tokens; returns the text that is certain now and was not given out before."""
        self._window.extend(token_ids)
        for token_id in token_ids if self._detokenizer.joins_bytes else ():
            continues = self._continues_bytes(token_id)
            if continues is not None:
                self._within_bytes = continues
        if self._within_bytes:
            return ""
        text = self._decode(self._window)
        new = text[len(self._given_text) :]
        if not new:
            return ""
        if new.endswith(REPLACEMENT):
            return self._give_part(text) if len(self._window) - self._num_given > MOST_HELD else ""
        del self._window[: self._num_given]
        self._num_given = len(self._window)
        self._given_text = self._decode(self._window)
        return new

    def _give_part(self, text: str) -> str:
        """Give out the certain part of the window's `text`: that of all tokens but the last ones."""
        keep = MOST_HELD // 2
        head = self._decode(self._window[:-keep])
        new, rest = head[len(self._given_text) :], text[len(head) :]
        window = self._window[self._num_given :]
        given_text = self._decode(window[:-keep])
        # With as many bytes as a character may have on both sides, none that lies across the cut is open any
        # more; and each character that is shown has at least one byte.
        certain = text.startswith(head) and min(len(new), len(rest)) >= MAX_BYTES_PER_CHARACTER
        if not certain or self._decode(window) != given_text + rest:
            return ""
        self._window, self._num_given, self._given_text = window, len(window) - keep, given_text
        return new

    def finish(self, token_ids: Sequence[int] = ()) -> str:
        """Append the last tokens; returns all the text that was not given out before."""
        self._window.extend(token_ids)
        new = self._decode(self._window)[len(self._given_text) :]
        self._given_text += new
        return new

    def _continues_bytes(self, token_id: int) -> bool | None:
        return self._detokenizer.continues_bytes(token_id, skip_special_tokens=self._skip_special_tokens)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._detokenizer.decode(
            token_ids,
            skip_special_tokens=self._skip_special_tokens,
            spaces_between_special_tokens=self._spaces_between_special_tokens,
        )
