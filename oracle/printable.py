"""Text that leaves for a terminal: nothing in it moves the cursor, changes colours or turns the direction."""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters without tab and line feed, marks of writing direction, separators of lines and
paragraphs, and halves of surrogate pairs."""

_USERINFO: Final = re.compile(r"(?<=://)[^\s/?#]*@")
"""Up to the last `@` before the path: a password may have one."""


def printable(text: object) -> str:
    r"""`str(text)` with control characters as escapes, such as ``\x1b``.

    Tabs and line feeds stay.
    """
    return HIDDEN.sub(_escape, str(text))


def short(value: object, limit: int = 80) -> str:
    """`repr(value)`, printable, without userinfo of URLs, and cut off beyond `limit` characters."""
    try:
        text = without_userinfo(printable(repr(value)))
    except ValueError:  # Python makes no text of a number of more than 4,300 digits
        bits = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        return f"<{type(value).__name__}{bits}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def without_userinfo(text: str) -> str:
    """The text without `user:password@` in its URLs."""
    return _USERINFO.sub("", text)
