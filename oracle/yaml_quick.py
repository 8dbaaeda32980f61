"""A quick reader for plainly written YAML: block mappings and lists, flow collections on one line, scalars on
one line or folded by `>-`.

The full reader takes longest of all that happens to a rule book, and books are plain. Whatever isn't surely
plain (and whatever is wrong) is left to it: this reader then gives None. A test holds the two to each other.
"""

from __future__ import annotations

import re
from typing import Any, Final

MAX_DEPTH: Final = 16
MAX_VALUES: Final = 20_000
_SPACES = re.compile(r" *")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_./-]*):(?: |\Z)")
_BLOCK_PLAIN = re.compile(r"[A-Za-z0-9_./(]")
_FLOW_WORD = r"[A-Za-z0-9_./()+'#-]"
_URL = r"https?://[A-Za-z0-9_./#()+-]+"
_FLOW_PLAIN = re.compile(
    rf"(?:{_URL}|-?[A-Za-z0-9_./]{_FLOW_WORD}*(?: [A-Za-z0-9_./()]{_FLOW_WORD}*)*)(?=[\]}},:])"
)
_QUOTED = re.compile(r"\"([^\"\\]*)\"|'((?:[^']|'')*)'")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,14})\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_SURELY_TEXT = re.compile(r"(?:[A-Za-z_(/]|[0-9]+\.[0-9]+\.)[^:]*\Z|" + _URL + r"\Z")
_AMBIGUOUS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})

Path = tuple[str | int, ...]
Place = tuple[int, int]


class _NotPlain(Exception):
    """The full reader is needed."""


def read_plain(text: str) -> tuple[Any, dict[Path, Place], dict[Path, Place]] | None:
    """Data, places of values, places of keys (line and column, from 1); None where the text isn't plain."""
    try:
        reader = _Reader(text)
        data = reader.block(0, ())
        if reader.at < len(reader.lines) or len(reader.places) + len(reader.key_places) > MAX_VALUES:
            return None
    except _NotPlain:
        return None
    return data, reader.places, reader.key_places


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines: list[tuple[int, int, str]] = []
        """Number from 1, indentation and content of each line that isn't empty or a comment."""
        self.at = 0
        self.raw = text.split("\n")
        self.places: dict[Path, Place] = {}
        self.key_places: dict[Path, Place] = {}
        for number, line in enumerate(self.raw, 1):
            content = line.lstrip(" ")
            if not line.isascii() and not line.isprintable():
                raise _NotPlain
            if content and content[0] != "#":
                if content[-1] == " " or not line.isprintable():
                    raise _NotPlain
                self.lines.append((number, len(line) - len(content), content))
            elif content and not content.isprintable():
                raise _NotPlain
        if not self.lines:
            raise _NotPlain

    def block(self, indent: int, path: Path) -> Any:
        """The mapping or list whose lines begin at `indent`."""
        if len(path) > MAX_DEPTH:
            raise _NotPlain
        number, found, content = self.lines[self.at]
        if found != indent:
            raise _NotPlain
        self.places[path] = (number, indent + 1)
        return self.items(indent, path) if content.startswith("- ") else self.mapping(indent, path)

    def mapping(self, indent: int, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while self.at < len(self.lines):
            number, found, content = self.lines[self.at]
            if found < indent:
                break
            key = _KEY.match(content)
            if found > indent or key is None or key[1] in data or key[1].lower() in _AMBIGUOUS:
                raise _NotPlain
            here = (*path, key[1])
            self.key_places[here] = (number, indent + 1)
            data[key[1]] = self.value(content[key.end() :], number, indent + key.end() + 1, indent, here)
        return data

    def items(self, indent: int, path: Path) -> list[Any]:
        data: list[Any] = []
        while self.at < len(self.lines):
            number, found, content = self.lines[self.at]
            if found < indent:
                break
            if found > indent or not content.startswith("- ") or content[2] in " -":
                raise _NotPlain
            here = (*path, len(data))
            rest = content[2:]
            if _KEY.match(rest):
                # the mapping of an item goes on where its first key stands
                self.lines[self.at] = (number, indent + 2, rest)
                data.append(self.block(indent + 2, here))
            else:
                data.append(self.value(rest, number, indent + 3, indent, here))
        return data

    def value(self, text: str, number: int, column: int, indent: int, path: Path) -> Any:
        """What follows a key or a dash: on the same line, or the deeper lines below."""
        self.at += 1
        deeper = self.at < len(self.lines) and self.lines[self.at][1] > indent
        if not text:
            if not deeper:
                raise _NotPlain
            return self.block(self.lines[self.at][1], path)
        if text == ">-" and deeper:
            self.places[path] = (number, column)
            return self.folded(number, indent)
        if deeper or text[0] == " ":
            raise _NotPlain
        if text[0] in "{[":
            value, end = self.flow(text, 0, number, column, path)
            if end != len(text):
                raise _NotPlain
            return value
        self.places[path] = (number, column)
        quoted = _QUOTED.match(text)
        if quoted:
            if quoted.end() != len(text):
                raise _NotPlain
            return _unquoted(quoted)
        if not _BLOCK_PLAIN.match(text) or ": " in text or " #" in text or text[-1] == ":":
            raise _NotPlain
        return _plain(text)

    def folded(self, number: int, indent: int) -> str:
        """The text of a `>-` whose lines are all indented alike, without empty lines among them."""
        inner = self.lines[self.at][1]
        words: list[str] = []
        while self.at < len(self.lines) and self.lines[self.at][1] > indent:
            line, found, content = self.lines[self.at]
            number += 1
            if (line, found) != (number, inner):
                raise _NotPlain
            words.append(content)
            self.at += 1
        for line_text in self.raw[number:]:
            content = line_text.lstrip(" ")
            if content:
                if len(line_text) - len(content) > indent:
                    # what looks like a comment would still be its text
                    raise _NotPlain
                break
        return " ".join(words)

    def flow(self, text: str, start: int, number: int, column: int, path: Path) -> tuple[Any, int]:
        """The value at `start` of a line's part that begins in `column`, and where it ends."""
        if len(path) > MAX_DEPTH or start >= len(text):
            raise _NotPlain
        self.places[path] = (number, column + start)
        opener = text[start]
        if opener == "[":
            return self.flow_items(text, start + 1, number, column, path)
        if opener == "{":
            return self.flow_mapping(text, start + 1, number, column, path)
        return _scalar(text, start)

    def flow_items(self, text: str, at: int, number: int, column: int, path: Path) -> tuple[list[Any], int]:
        data: list[Any] = []
        if text[at : at + 1] == "]":
            return data, at + 1
        while True:
            item, at = self.flow(text, at, number, column, (*path, len(data)))
            data.append(item)
            if text[at : at + 1] == "]":
                return data, at + 1
            at = _comma(text, at)

    def flow_mapping(
        self, text: str, at: int, number: int, column: int, path: Path
    ) -> tuple[dict[str, Any], int]:
        data: dict[str, Any] = {}
        if text[at : at + 1] == "}":
            return data, at + 1
        while True:
            key, end = _scalar(text, at)
            if not isinstance(key, str) or key in data or key == "<<" or text[end : end + 2] != ": ":
                raise _NotPlain
            here = (*path, key)
            self.key_places[here] = (number, column + at)
            data[key], at = self.flow(text, end + 2, number, column, here)
            if text[at : at + 1] == "}":
                return data, at + 1
            at = _comma(text, at)


def _comma(text: str, at: int) -> int:
    if text[at : at + 2] != ", " or text[at + 2 : at + 3] == " ":
        raise _NotPlain
    return at + 2


def _scalar(text: str, at: int) -> tuple[Any, int]:
    found = _FLOW_PLAIN.match(text, at)
    if found:
        return _plain(found[0]), found.end()
    found = _QUOTED.match(text, at)
    if found is None:
        raise _NotPlain
    return _unquoted(found), found.end()


def _unquoted(found: re.Match[str]) -> str:
    return found[1] if found[1] is not None else found[2].replace("''", "'")


def _plain(text: str) -> str | int | bool | None:
    if text in ("true", "false"):
        return text == "true"
    if text == "null":
        return None
    if text.lower() in _AMBIGUOUS:
        raise _NotPlain
    if _SURELY_TEXT.match(text) or _DATE.match(text):
        return text
    if _INTEGER.match(text):
        return int(text)
    raise _NotPlain
