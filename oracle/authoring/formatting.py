"""The canonical form of a rule file: one layout for one content, with every comment kept.

Keys have a fixed order; rules keep their order. A value that fits on a line is written on one line, except
for rules, examples, `all` and `any`, which have one line for each part. Text is plain where YAML reads it
back as it is, else in double quotes. Rules are set apart by one blank line.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dodona.oracle.authoring.tree import Entry, Node, Scalar, node_of, read_tree
from dodona.oracle.errors import DodonaError, RuleFileError
from dodona.oracle.language.consequence import Consequence
from dodona.oracle.language.extends import Sibling, folder_sibling
from dodona.oracle.language.rule import Examples
from dodona.oracle.language.rulebook import DeclaredException, EnvironmentVariable, RuleBook
from dodona.oracle.language.yaml_source import DataPath, parse_yaml, read_bytes
from dodona.oracle.systems.books import parse_rulebook

WIDTH: Final = 120
"""Longest line, in characters, where there is a place to break it."""

BOOK_KEYS: Final = ("rulebook", "extends", "description", "remove", *list(RuleBook.model_fields)[2:])
RULE_KEYS: Final = (
    "id",
    "kind",
    "runners",
    "stage",
    "precedence",
    "unless_vetoed",
    "refines",
    "when",
    "feature",
    "because",
    "log",
    "refs",
    "since",
    "examples",
)
"""Order of the keys of a rule: what it is and counts for, what it says, and what bears it out."""

CONSEQUENCE_KEYS: Final = tuple(Consequence.model_fields)
"""Order of the keys of a consequence."""

_ENTRIES: Final = {"consequences": CONSEQUENCE_KEYS, "rules": RULE_KEYS}
"""Lists of a book that have a block for each entry, and the order of an entry's keys."""

_PROSE = ("description", "feature", "because", "mend")
"""Keys whose text is read with its spaces and line ends counting as one space."""

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./]*(-[A-Za-z0-9_./]+)*\Z")
_SPECIAL = frozenset({"yes", "no", "on", "off", "y", "n", "true", "false", "null"})


class FormatError(DodonaError):
    """The formatter would have changed what a file means, and so wrote nothing. The file isn't at fault."""


def format_text(text: str, *, file: str = "<text>", sibling: Sibling | None = None) -> str:
    """The canonical form of a rule book's text.

    sibling: reads the books that it may extend. Raises RuleFileError where the text is no rule book,
    FormatError where the result would decide differently or lose a comment.
    """
    before = parse_rulebook(text, file=file, sibling=sibling)
    document = parse_yaml(text, file=file)
    tree = read_tree(text, document)
    kept = Counter(tree.comments())
    written = _Writer().file(tree.root, tree.header, tree.footer)
    try:
        after = parse_rulebook(written, file=file, sibling=sibling)
        again = parse_yaml(written, file=file)
        comments = read_tree(written, again).comments()
    except RuleFileError as error:
        raise FormatError(f"{file}: not formatted: the result can't be read: {error}") from None
    if after.content_hash != before.content_hash or _normal(again.data) != _normal(document.data):
        raise FormatError(f"{file}: not formatted: the result would mean something else")
    if Counter(comments) != kept:
        raise FormatError(f"{file}: not formatted: a comment would be lost")
    return written


def rule_text(rule: Mapping[str, Any]) -> str:
    """A rule, given as data, as an entry of a book's `rules` in canonical form."""
    tree = node_of([dict(rule)])
    return "\n".join(_Writer().rules(tree)) + "\n"


def format_file(path: Path, *, write: bool = True) -> tuple[str, str]:
    """Format a file in place, at once or not at all. Returns its text before and after.

    write: False only says what would be written. Raises RuleFileError, FormatError.
    """
    raw = read_bytes(path)
    parse_yaml(raw, file=str(path))
    before = raw.decode("utf-8")
    after = format_text(before, file=str(path), sibling=folder_sibling(path))
    if write and after.encode() != raw:
        write_atomically(path, after)
    return before, after


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content so that readers see the old or the new text, never a part. Keeps its mode."""
    target = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _normal(value: Any, key: object = None) -> Any:
    if isinstance(value, dict):
        return {k: _normal(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return _one_line(value, key)


def _one_line(value: Any, key: object) -> Any:
    return " ".join(value.split()) if isinstance(value, str) and key in _PROSE else value


class _Writer:
    """Lays out one file."""

    def file(self, root: Node, header: Sequence[str | None], footer: Sequence[tuple[int, str | None]]) -> str:
        ordered = _ordered(root.entries, ())
        first, last = ordered[0], ordered[-1]
        # what has come to stand at the top or at the end is what a reader finds there
        lines = _collapsed([*header, *first.lead])
        footer = [*((2, text) for text in last.tail), *footer]
        first.lead, last.tail = [], []
        while lines and not lines[0]:
            lines.pop(0)
        if lines and lines[-1]:
            lines.append("")
        lines += self._mapping(root, 0, ())
        end = [f"{' ' * (min(column, 4) // 2 * 2)}{text}" if text else "" for column, text in footer]
        while end and not end[-1]:
            end.pop()
        if end and end[0]:
            end.insert(0, "")
        previous = "x"
        for line in end:
            if line or previous:
                lines.append(line)
            previous = line
        return "\n".join(lines) + "\n"

    def rules(self, node: Node) -> list[str]:
        """The lines of a list of rules."""
        return self._list(node, 2, ("rules",))

    # --- blocks

    def _mapping(self, node: Node, indent: int, path: DataPath) -> list[str]:
        lines: list[str] = []
        for number, entry in enumerate(_ordered(node.entries, path)):
            assert entry.key is not None
            here = (*path, entry.key)
            apart = entry.key in _ENTRIES or (entry.lead[:1] == [None] and any(entry.lead))
            blank = not path and number > 0 and apart
            lines += self._lead(entry, indent, blank=blank, apart=not path)
            lines += self._entry(f"{' ' * indent}{_key(entry.key)}:", entry, indent, here)
            lines += _indented(entry.tail, indent + 2)
        return lines

    def _entry(self, head: str, entry: Entry, indent: int, path: DataPath) -> list[str]:
        comment = f"  {entry.eol}" if entry.eol else ""
        node = entry.node
        if node.kind == "scalar":
            value = _one_line(node.value, entry.key)
            text = _scalar(value, flow=False)
            if len(head) + 1 + len(text) <= WIDTH or not _can_fold(value):
                return [f"{head} {text}{comment}"]
            folded = textwrap.wrap(value, WIDTH - indent - 2, break_long_words=False, break_on_hyphens=False)
            return [f"{head} >-{comment}", *_indented(folded, indent + 2)]
        flow = self._flow(node, path)
        if flow is not None and len(head) + 1 + len(flow) <= WIDTH:
            return [f"{head} {flow}{comment}"]
        return [f"{head}{comment}", *self._block(node, indent + 2, path)]

    def _block(self, node: Node, indent: int, path: DataPath) -> list[str]:
        return self._mapping(node, indent, path) if node.kind == "mapping" else self._list(node, indent, path)

    def _list(self, node: Node, indent: int, path: DataPath) -> list[str]:
        rules = len(path) == 1 and path[0] in _ENTRIES
        lines: list[str] = []
        for number, entry in enumerate(node.entries):
            body = self._item(entry, indent, (*path, number))
            lines += self._lead(entry, indent, blank=rules and number > 0, apart=rules)
            lines += body
            lines += _indented(entry.tail, indent + 2)
        return lines

    def _item(self, entry: Entry, indent: int, path: DataPath) -> list[str]:
        head = f"{' ' * indent}-"
        node = entry.node
        only = node.entries[0] if len(node.entries) == 1 else None
        if only is not None and only.eol and not entry.eol and not _is_block(path, node):
            # of `- key: value  # comment` nobody can tell whether it speaks of the item or of the key
            entry.eol, only.eol = only.eol, ""
        flow = _scalar(node.value, flow=False) if node.kind == "scalar" else self._flow(node, path)
        if flow is not None and (node.kind == "scalar" or len(head) + 1 + len(flow) <= WIDTH):
            return [f"{head} {flow}" + (f"  {entry.eol}" if entry.eol else "")]
        first = _ordered(node.entries, path)[0]
        # a comment between a dash and its first key stands before the dash
        entry.lead += [text for text in first.lead if text is not None]
        first.lead = []
        body = self._block(node, indent + 2, path)
        body[0] = f"{head} {body[0].lstrip(' ')}"
        if entry.eol and len(body) == 1 and not first.eol:
            body[0] += f"  {entry.eol}"
        elif entry.eol:
            entry.lead.append(entry.eol)
        return body

    def _lead(self, entry: Entry, indent: int, *, blank: bool, apart: bool) -> list[str]:
        """Comment lines before an entry. blank: a blank line before all; apart: one may follow them."""
        kept = _collapsed(entry.lead)
        while kept and not kept[0]:
            kept.pop(0)
        while kept and not kept[-1] and not apart:
            kept.pop()
        return ([""] if blank else []) + [f"{' ' * indent}{text}" if text else "" for text in kept]

    # --- lines

    def _flow(self, node: Node, path: DataPath) -> str | None:
        """A value on one line; None where it must be a block."""
        if node.kind == "scalar":
            return _scalar(node.value, flow=True)
        if node.entries and _is_block(path, node):
            return None
        parts: list[str] = []
        for number, entry in enumerate(_ordered(node.entries, path)):
            if entry.comments:
                return None
            inner = self._flow(entry.node, (*path, number if entry.key is None else entry.key))
            if inner is None:
                return None
            parts.append(inner if entry.key is None else f"{_key(entry.key)}: {inner}")
        joined = ", ".join(parts)
        return f"{{{joined}}}" if node.kind == "mapping" else f"[{joined}]"


def _is_block(path: DataPath, node: Node) -> bool:
    """Whether a collection has a line for each entry, however short it is."""
    if path in ((), ("exceptions",), ("environment",)) or (len(path) == 1 and path[0] in _ENTRIES):
        return True
    if len(path) == 2 and (path[0] == "exceptions" or path[0] in _ENTRIES):
        return True
    if len(path) < 3 or path[0] not in _ENTRIES:
        return False
    if path[2] == "examples":
        return len(path) == 3
    if path[2] != "when":
        return False
    in_junction = len(path) > 3 and isinstance(path[-1], int) and path[-2] in ("all", "any")
    return (in_junction and node.kind == "mapping") or _has_junction(node)


def _has_junction(node: Node) -> bool:
    return any(entry.key in ("all", "any") for entry in node.entries) or any(
        entry.key is None or (entry.key == "not" and _has_junction(entry.node))
        for entry in node.entries
        if entry.node.kind == "mapping"
    )


def _ordered(entries: Sequence[Entry], path: DataPath) -> list[Entry]:
    """Entries in the canonical order of keys; unknown ones, and those that people order, as they are."""
    keys: Sequence[str] = ()
    if not path:
        keys = BOOK_KEYS
    elif len(path) == 2 and path[0] in _ENTRIES:
        keys = _ENTRIES[str(path[0])]
    elif len(path) == 2 and path[0] == "exceptions":
        keys = list(DeclaredException.model_fields)
    elif path == ("environment",):
        keys = list(EnvironmentVariable.model_fields)
    elif len(path) == 3 and path[0] in _ENTRIES and path[2] == "examples":
        keys = list(Examples.model_fields)
    rank = {key: i for i, key in enumerate(keys)}
    return sorted(entries, key=lambda entry: rank.get(entry.key or "", len(rank)))


def _collapsed(lines: Sequence[str | None]) -> list[str]:
    """Lines with "" for blank ones, and no two of them together."""
    kept: list[str] = []
    for line in lines:
        if line is not None:
            kept.append(line)
        elif kept and kept[-1]:
            kept.append("")
    return kept


def _indented(lines: Sequence[str], indent: int) -> list[str]:
    return [f"{' ' * indent}{line}" for line in lines]


# --- scalars


def _scalar(value: Scalar, *, flow: bool) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return _text(value, flow)


@functools.lru_cache(maxsize=4096)
def _text(value: str, flow: bool) -> str:
    if _PLAIN.match(value) and value.lower() not in _SPECIAL:
        return value
    if value and value.isprintable():
        trial, expected = (
            (f"[{value}, {{k: {value}}}]", [value, {"k": value}])
            if flow
            else (
                f"- {value}\n- k: {value}\n",
                [value, {"k": value}],
            )
        )
        if _reads_as(trial, expected):
            return value
    quoted = json.dumps(value, ensure_ascii=False)
    return quoted if _reads_as(f"[{quoted}]", [value]) else json.dumps(value)


@functools.lru_cache(maxsize=4096)
def _key(key: str) -> str:
    if _PLAIN.match(key) and key.lower() not in _SPECIAL:
        return key
    plain = key and key.isprintable() and _reads_as(f"{{{key}: 1}}", {key: 1})
    return key if plain else json.dumps(key, ensure_ascii=False)


def _reads_as(text: str, expected: object) -> bool:
    try:
        return bool(parse_yaml(text).data == expected)
    except RuleFileError:
        return False


def _can_fold(value: object) -> bool:
    return (
        isinstance(value, str) and value == " ".join(value.split()) and value.isprintable() and " " in value
    )
