"""A rule file as a tree that keeps its comments and blank lines, each beside the entry it speaks of."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dodona.oracle.language.extends import LISTS
from dodona.oracle.language.yaml_source import DataPath, Document

Scalar = str | int | bool | None

_COMMENT = re.compile(r"#[^\r\n]*")
_BLOCK_HEADER = re.compile(r"[|>][-+0-9]*[ \t]+(#[^\r\n]*)")


@dataclass
class Node:
    """A value: a scalar, or the entries of a mapping or a list."""

    kind: str
    """ "scalar", "mapping" or "list"."""
    value: Scalar = None
    entries: list[Entry] = field(default_factory=list)
    flow: bool = False
    end: int = 0
    """Offset in the text just after it."""

    def walk(self) -> Iterator[Entry]:
        """All entries below, outermost first, in the order of the text."""
        for entry in self.entries:
            yield entry
            yield from entry.node.walk()


@dataclass
class Entry:
    """An entry of a mapping (with a key) or of a list (key None), and the comments that go with it."""

    key: str | None
    node: Node
    start: int
    """Offset in the text where it begins."""
    column: int
    """Column, from 0, of its key or dash."""
    lead: list[str | None] = field(default_factory=list)
    """Comment lines before it; None is a blank line."""
    eol: str = ""
    """A comment on its own line."""
    tail: list[str] = field(default_factory=list)
    """Comment lines after a rule or an entry of the book, indented deeper than what follows."""

    @property
    def comments(self) -> list[str]:
        """Its own comments."""
        return [
            *[text for text in self.lead if text is not None],
            *([self.eol] if self.eol else []),
            *self.tail,
        ]


@dataclass
class Tree:
    """A whole file."""

    root: Node
    header: list[str | None]
    """Comment lines before the first entry."""
    footer: list[tuple[int, str | None]]
    """Comment lines after the last entry, each with its column."""

    def comments(self) -> list[str]:
        """Every comment of the file, in no particular order."""
        own = [text for text in self.header if text is not None]
        own += [text for _, text in self.footer if text is not None]
        return own + [text for entry in self.root.walk() for text in entry.comments]


def read_tree(text: str, document: Document) -> Tree:
    """The tree of a text. document: the same text, read by `parse_yaml`, which has checked it."""
    return _Reader(text, document).tree()


def node_of(data: Any) -> Node:
    """A tree without comments, from plain data."""
    if isinstance(data, dict):
        return Node("mapping", entries=[Entry(key, node_of(value), 0, 0) for key, value in data.items()])
    if isinstance(data, (list, tuple)):
        return Node("list", entries=[Entry(None, node_of(value), 0, 0) for value in data])
    return Node("scalar", data)


class _Reader:
    def __init__(self, text: str, document: Document) -> None:
        self._text = text
        self._data = document.data
        self._scalars: list[tuple[int, int]] = []
        self._columns: dict[int, list[int]] = {}
        self._line_starts = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]

    def tree(self) -> Tree:
        import yaml

        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = yaml.parse(self._text, Loader=loader)
        root = Node("scalar")
        for event in events:
            if hasattr(event, "anchor"):
                root = self._node(event, events, ())
        found = list(self._find_comments())
        tree = Tree(root, [], [])
        entries = list(root.walk())
        self._place_own_lines(tree, entries, {offset: text for offset, text, own in found if own})
        for offset, text, own in found:
            if not own:
                self._place_end_of_line(tree, entries, offset, text)
        # deeper down keys change places, and what comes after one isn't what came after it
        self._split_tails(root)
        for entry in root.entries:
            if entry.key in LISTS:
                self._split_tails(entry.node)
        return tree

    # --- values

    def _node(self, event: Any, events: Iterator[Any], path: DataPath) -> Node:
        start = event.start_mark.index
        if not hasattr(event, "flow_style"):
            end = self._scalar_end(start, event.end_mark.index)
            self._scalars.append((start, end))
            return Node("scalar", self._at(path), end=end)
        mapping = isinstance(self._at(path), dict)
        node = Node("mapping" if mapping else "list", flow=bool(event.flow_style), end=start)
        column = event.start_mark.column
        keys = iter(self._at(path))
        for child in events:
            if not hasattr(child, "anchor"):
                if node.flow:
                    node.end = child.end_mark.index
                return node
            begin = child.start_mark.index
            if mapping:
                key = next(keys)
                self._scalars.append((begin, self._scalar_end(begin, child.end_mark.index)))
                value = self._node(next(events), events, (*path, key))
            else:
                key = None
                value = self._node(child, events, (*path, len(node.entries)))
            # a value that is left out has no place of its own
            value.end = max(value.end, begin)
            node.entries.append(Entry(key, value, begin, child.start_mark.column if node.flow else column))
            node.end = value.end
        return node

    def _at(self, path: DataPath) -> Any:
        value = self._data
        for step in path:
            value = value[step]
        return value

    def _scalar_end(self, start: int, end: int) -> int:
        text = self._text[start:end]
        if text[:1] in ("|", ">"):
            # the parser counts the comments that follow a block as part of it
            lines = text.splitlines(keepends=True)
            indents = [len(line) - len(line.lstrip(" ")) for line in lines[1:] if line.strip()]
            deep = indents[0] if indents else 0
            while len(lines) > 1 and (
                not lines[-1].strip()
                or (lines[-1].lstrip().startswith("#") and len(lines[-1]) - len(lines[-1].lstrip(" ")) < deep)
            ):
                lines.pop()
            text = "".join(lines)
        return start + len(text.rstrip())

    # --- comments

    def _find_comments(self) -> Iterator[tuple[int, str, bool]]:
        """Offset, text, and whether it has the line to itself."""
        position = 0
        for start, end in [*sorted(self._scalars), (len(self._text), len(self._text))]:
            for match in _COMMENT.finditer(self._text, position, start):
                line_start = self._line_starts[self._line(match.start())]
                yield (
                    match.start(),
                    match[0].rstrip(),
                    not self._text[line_start : match.start()].strip(" \t\ufeff"),
                )
            if header := _BLOCK_HEADER.match(self._text, start, end):
                yield header.start(1), header[1].rstrip(), False
            position = max(position, end)

    def _line(self, offset: int) -> int:
        return bisect.bisect_right(self._line_starts, offset) - 1

    def _place_own_lines(self, tree: Tree, entries: list[Entry], comments: dict[int, str]) -> None:
        texts = {
            self._line(offset): (offset - self._line_starts[self._line(offset)], text)
            for offset, text in comments.items()
        }
        inside = {
            line
            for start, end in self._scalars
            for line in range(self._line(start) + 1, self._line(max(start, end - 1)) + 1)
        }
        starts = [entry.start for entry in entries]
        for line, begin in enumerate(self._line_starts):
            stop = self._line_starts[line + 1] if line + 1 < len(self._line_starts) else len(self._text)
            blank = not self._text[begin:stop].strip("\ufeff \t\r\n")
            if line in inside or (line not in texts and not blank):
                continue
            column, text = texts.get(line, (0, None))
            index = bisect.bisect_left(starts, stop)
            if index == 0:
                tree.header.append(text)
            elif index == len(entries):
                tree.footer.append((column, text))
            else:
                self._lead(entries[index], column, text)

    def _lead(self, entry: Entry, column: int, text: str | None) -> None:
        entry.lead.append(text)
        # needed until tails are told from leads
        self._columns.setdefault(id(entry), []).append(column)

    def _place_end_of_line(self, tree: Tree, entries: list[Entry], offset: int, text: str) -> None:
        line = self._line(offset)
        before = [e for e in entries if e.start < offset]
        here = [e for e in before if self._line(e.start) == line]
        ended = [
            e for e in before if e.node.end <= offset and self._line(max(e.start, e.node.end - 1)) == line
        ]
        whole = [e for e in here if e.node.end <= offset]
        collections = [e for e in ended if e.node.kind != "scalar" and e.node.flow]
        for candidates in (whole[:1], here[-1:], collections[:1], ended[-1:]):
            if candidates and not candidates[0].eol:
                candidates[0].eol = text
                return
        index = bisect.bisect_left([e.start for e in entries], offset)
        if index < len(entries):
            self._lead(entries[index], 0, text)
        elif entries:
            tree.footer.append((0, text))
        else:
            tree.header.append(text)

    def _split_tails(self, node: Node) -> None:
        previous: Entry | None = None
        for entry in node.entries:
            columns = self._columns.get(id(entry), [])
            count = 0
            while previous is not None and count < len(entry.lead):
                text = entry.lead[count]
                if text is None or columns[count] <= entry.column:
                    break
                previous.tail.append(text)
                count += 1
            del entry.lead[:count]
            previous = entry
