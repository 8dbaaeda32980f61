"""Strict YAML: a small, predictable subset, with the line and column of every value.

What YAML would guess at is refused instead: duplicate keys, anchors and aliases, tags, merge keys,
directives, several documents, `no`/`off`/`yes` as booleans, octal and hexadecimal numbers, floats. A plain
scalar is `true`, `false`, `null`, a decimal whole number, or text; anything quoted is text. Input is bounded
in size, depth and number of values, and the bounds are checked while reading, so that no input makes the
reader recurse or grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.files import read_prefix

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_VALUES = 20_000
MAX_INTEGER = 2**53 - 1
"""Largest magnitude of a whole number: what every JSON reader and the rule engine hold exactly."""

TYPE_NAMES: Mapping[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true/false",
    int: "a whole number",
    type(None): "null",
}

DataPath = tuple[str | int, ...]
"""Keys and indices from the top of a document to a value."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_NUMBER_SHAPES = re.compile(
    r"[-+]?(0[0-9_]+|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*_[0-9_]*|[0-9]+(:[0-5]?[0-9])+"
    r"|([0-9][0-9_]*)?\.[0-9_]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*\.([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)\Z"
)
_SPECIAL_FLOATS = frozenset({".nan", ".inf", "-.inf", "+.inf"})
_YES = frozenset({"yes", "on", "y", "true"})
_NO = frozenset({"no", "off", "n", "false"})


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text file; lines and columns count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document as plain Python data, with the place of each value and key.

    `data` holds dict, list, str, int, bool and None only. `positions` maps the path of each value to where it
    begins; `key_positions` maps the path of each mapping entry to where its key begins.
    """

    file: str
    data: Any
    positions: Mapping[DataPath, Position]
    key_positions: Mapping[DataPath, Position]

    def position(self, path: DataPath, *, key: bool = False) -> Position:
        """Where the value at `path` (or its key) begins; for a path that isn't there, its nearest ancestor
        that is.
        """
        if key and path in self.key_positions:
            return self.key_positions[path]
        while path not in self.positions and path:
            path = path[:-1]
        return self.positions.get(path, Position(1, 1))

    def fail(self, path: DataPath, message: str, hint: str = "", *, key: bool = False) -> NoReturn:
        """Raise RuleFileError at the place of `path`."""
        at = self.position(path, key=key)
        raise RuleFileError(self.file, at.line, at.column, message, hint)


def read_yaml(path: Path) -> Document:
    """Read and parse one file. Raises RuleFileError (with the place) for anything that isn't the strict
    subset.
    """
    return parse_yaml(read_bytes(path), file=str(path))


def read_bytes(path: Path) -> bytes:
    """A file's content, cut off just beyond the size that `parse_yaml` takes. Raises RuleFileError."""
    try:
        return read_prefix(path, limit=MAX_BYTES)
    except ConfigError as error:
        message = str(error).removeprefix(f"{path}: ").removesuffix("; check the path")
        raise RuleFileError(str(path), 1, 1, message, "Check the path.") from None


def parse_yaml(source: str | bytes, *, file: str = "<text>") -> Document:
    """Parse strict YAML (see the module). `file` is only for messages. Raises RuleFileError."""
    raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(raw) > MAX_BYTES:
        raise RuleFileError(
            file, 1, 1, f"is larger than {MAX_BYTES // 1024} KiB", "Split it into several books."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise RuleFileError(file, line, column, "is not UTF-8 text", "Save the file as UTF-8.") from None
    return _Builder(file).build(text)


class _Builder:
    """Builds a Document from the parser's events with a stack of its own, so that depth is bounded, not
    recursed.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self.positions: dict[DataPath, Position] = {}
        self.key_positions: dict[DataPath, Position] = {}

    def fail(self, mark: Any, message: str, hint: str = "") -> NoReturn:
        raise RuleFileError(self.file, mark.line + 1, mark.column + 1, message, hint)

    def build(self, text: str) -> Document:
        import yaml

        # libyaml takes a fifteenth of the time; the Python reader serves where PyYAML was built without it.
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            data = self.document(yaml.parse(text, Loader=loader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = " ".join(str(error.problem or error.context or "is not YAML").split())
            tab = mark is not None and text[mark.index : mark.index + 1] == "\t"
            hint = "Indent with spaces; a tab can't be used." if tab else _syntax_hint(message)
            at = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
            raise RuleFileError(self.file, at[0], at[1], f"is not YAML: {message}", hint) from None
        except yaml.YAMLError as error:
            offset = getattr(error, "position", 0) or 0
            before = text[:offset]
            raise RuleFileError(
                self.file,
                before.count("\n") + 1,
                offset - (before.rfind("\n") + 1) + 1,
                f"is not YAML: {' '.join(str(getattr(error, 'reason', error)).split())}",
                "Remove the control character.",
            ) from None
        return Document(
            self.file, data, MappingProxyType(self.positions), MappingProxyType(self.key_positions)
        )

    def document(self, events: Iterator[Any]) -> Any:
        from yaml import events as ev

        documents = 0
        result: Any = None
        # each open collection: (container, its path, the key waiting for its value)
        stack: list[tuple[dict[str, Any] | list[Any], DataPath]] = []
        pending: list[str | None] = []

        def child_path(mark: Any) -> DataPath:
            if not stack:
                return ()
            container, path = stack[-1]
            if isinstance(container, list):
                return (*path, len(container))
            key = pending[-1]
            if key is None:
                self.fail(mark, "a key must be text", "Write `key: value`; lists and mappings can't be keys.")
            return (*path, key)

        def place(value: Any) -> None:
            nonlocal result
            if not stack:
                result = value
                return
            container, _ = stack[-1]
            if isinstance(container, list):
                container.append(value)
            else:
                key = pending[-1]
                assert key is not None
                container[key] = value
                pending[-1] = None

        for event in events:
            mark = event.start_mark
            if isinstance(event, ev.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.fail(
                        mark, "holds a second document", "Keep one document per file; remove the `---`."
                    )
                if event.version or event.tags:
                    self.fail(mark, "uses a % directive", "Remove the line that begins with `%`.")
                continue
            if isinstance(event, ev.AliasEvent):
                self.fail(
                    mark, f"uses the alias *{event.anchor}", "Write the value out; aliases aren't read."
                )
            if isinstance(event, (ev.ScalarEvent, ev.CollectionStartEvent)):
                self.count += 1
                if self.count > MAX_VALUES:
                    self.fail(mark, f"holds more than {MAX_VALUES} values", "Split it into several books.")
                if event.anchor is not None:
                    self.fail(
                        mark, f"uses the anchor &{event.anchor}", "Write the value out; anchors aren't read."
                    )
                if event.tag is not None:
                    self.fail(
                        mark, f"uses the tag {event.tag}", "Remove the tag; quote the value if it is text."
                    )
            if isinstance(event, ev.ScalarEvent):
                if stack and isinstance(stack[-1][0], dict) and pending[-1] is None:
                    pending[-1] = self.key(event, stack[-1])
                    continue
                path = child_path(mark)
                self.positions[path] = Position(mark.line + 1, mark.column + 1)
                place(self.scalar(event))
            elif isinstance(event, ev.CollectionStartEvent):
                if len(stack) >= MAX_DEPTH:
                    self.fail(mark, f"nests deeper than {MAX_DEPTH} levels", "Flatten the conditions.")
                path = child_path(mark)
                self.positions[path] = Position(mark.line + 1, mark.column + 1)
                stack.append(({} if isinstance(event, ev.MappingStartEvent) else [], path))
                pending.append(None)
            elif isinstance(event, ev.CollectionEndEvent):
                container, _ = stack.pop()
                pending.pop()
                place(container)
        if not documents:
            raise RuleFileError(self.file, 1, 1, "is empty", "A rule book begins with `rulebook: NAME`.")
        return result

    def key(self, event: Any, parent: tuple[dict[str, Any] | list[Any], DataPath]) -> str:
        container, path = parent
        mark = event.start_mark
        plain = not event.style
        value = self.scalar(event)
        if event.value == "<<" and plain:
            self.fail(mark, "uses the merge key <<", "Write the entries out; merging isn't read.")
        if not isinstance(value, str):
            self.fail(
                mark, f"the key {event.value!r} is {TYPE_NAMES[type(value)]}, not text", "Quote the key."
            )
        here = (*path, value)
        if value in container:
            first = self.key_positions[here]
            self.fail(
                mark,
                f"the key {value!r} appears twice in one mapping",
                f"It is first given on line {first.line}; keep one of them.",
            )
        self.key_positions[here] = Position(mark.line + 1, mark.column + 1)
        return value

    def scalar(self, event: Any) -> str | int | bool | None:
        value: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.fail(event.start_mark, "holds half of a surrogate pair", "Write the character itself.")
        if event.style:
            return value
        if value in ("", "~", "null"):
            return None
        if value == "true":
            return True
        if value == "false":
            return False
        mark = event.start_mark
        lowered = value.lower()
        if lowered in _YES or lowered in _NO:
            meant = "true" if lowered in _YES else "false"
            self.fail(
                mark,
                f"{value} is read as a boolean by some YAML readers and as text by others",
                f"Write {meant}, or '{value}' in quotes if it is text.",
            )
        if lowered in ("null",):
            self.fail(mark, f"{value} is ambiguous", f"Write null, or '{value}' in quotes if it is text.")
        if _INTEGER.match(value):
            if len(value) > 20 or abs(int(value)) > MAX_INTEGER:
                self.fail(mark, f"the number {value[:40]} is too large", "Whole numbers go up to 2^53 - 1.")
            return int(value)
        if _DATE.match(value):
            return value
        if _NUMBER_SHAPES.match(value) or lowered in _SPECIAL_FLOATS:
            self.fail(
                mark,
                f"{value[:40]} isn't a plain decimal whole number",
                f"Write it in decimal without a leading zero, or '{value[:40]}' in quotes if it is text.",
            )
        return value


def _syntax_hint(message: str) -> str:
    if "mapping values are not allowed" in message:
        return "Quote text that holds `: `, and check the indentation."
    if any(part in message for part in ("expected key", "expected '-'", "<block end>", "find expected ':'")):
        return "Check the indentation, and that each key is followed by `: `."
    if "Unicode character escape" in message:
        return "Write the character itself."
    if "cannot start any token" in message:
        return "Quote text that begins with a special character."
    return "Check quotes, brackets and indentation near here."
