"""YAML of deployments as plain values with lines: several documents, anchors, merge keys, templates of Helm.

Unlike the YAML of rule books, such files may use all of YAML's conveniences. Anchors are shared and never
copied, so that a small file can't grow; what reads the result counts its steps (`walk`). Tags are ignored:
nothing is built but mappings, lists and text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.errors import ConfigError

MAX_DEPTH: Final = 64
MAX_EVENTS: Final = 200_000
MAX_STEPS: Final = 50_000
"""Most values that are looked at in one file, those behind anchors counted each time."""

TEMPLATE_VALUE: Final = "$TEMPLATE"
"""What stands in for a value that a template fills in."""

_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_ONLY_TEMPLATE = re.compile(r"\s*(\{\{[^{}]*\}\}\s*)+\Z")


@dataclass(frozen=True, eq=False)
class Node:
    """A value and the line on which it begins: text, a list of nodes, or a mapping of text to nodes."""

    value: str | list[Node] | dict[str, Node]
    line: int

    def get(self, *keys: str) -> Node | None:
        """The value behind keys of nested mappings; None where there is none."""
        node: Node | None = self
        for key in keys:
            node = node.entries.get(key) if node is not None else None
        return node

    @property
    def text(self) -> str | None:
        """The value of a scalar; None for mappings and lists."""
        return self.value if isinstance(self.value, str) else None

    @property
    def items(self) -> list[Node]:
        """The entries of a list; none for anything else."""
        return self.value if isinstance(self.value, list) else []

    @property
    def entries(self) -> dict[str, Node]:
        """The entries of a mapping; none for anything else."""
        return self.value if isinstance(self.value, dict) else {}


def parse_documents(text: str, *, where: str) -> list[Node]:
    """The documents of a YAML text. Raises ConfigError that names the file and the line."""
    import yaml

    if "{{" in text:
        text = "\n".join(_without_templates(line) for line in text.split("\n"))
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Builder(where).build(yaml.parse(text, Loader=loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{place}: is no YAML that can be read") from None
    except (RecursionError, ValueError):
        raise ConfigError(f"{where}: is no YAML that can be read") from None


def _without_templates(line: str) -> str:
    if "{{" not in line:
        return line
    return "" if _ONLY_TEMPLATE.match(line) else _TEMPLATE.sub(TEMPLATE_VALUE, line)


class _Builder:
    """Builds nodes from the parser's events with a stack of its own."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.anchors: dict[str, Node] = {}
        self.merged = 0

    def build(self, events: Any) -> list[Node]:
        import yaml

        documents: list[Node] = []
        stack: list[tuple[Any, list[Node]]] = []
        for number, event in enumerate(events):
            line = event.start_mark.line + 1
            if number > MAX_EVENTS:
                raise ConfigError(f"{self.where}:{line}: has more than {MAX_EVENTS} values")
            if isinstance(event, yaml.CollectionStartEvent):
                if len(stack) >= MAX_DEPTH:
                    raise ConfigError(f"{self.where}:{line}: nests deeper than {MAX_DEPTH} levels")
                stack.append((event, []))
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                start, parts = stack.pop()
                node = self._closed(start, parts)
            elif isinstance(event, yaml.ScalarEvent):
                node = Node(event.value, line)
                if event.anchor is not None:
                    self.anchors[event.anchor] = node
            elif isinstance(event, yaml.AliasEvent):
                # an anchor inside its own value is not known yet
                node = self.anchors.get(event.anchor or "", Node("", line))
            else:
                continue
            if stack:
                stack[-1][1].append(node)
            else:
                documents.append(node)
        return documents

    def _closed(self, start: Any, parts: list[Node]) -> Node:
        import yaml

        line = start.start_mark.line + 1
        node = Node(self._mapping(parts) if isinstance(start, yaml.MappingStartEvent) else parts, line)
        if start.anchor is not None:
            self.anchors[start.anchor] = node
        return node

    def _mapping(self, parts: list[Node]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        for key, value in zip(parts[::2], parts[1::2], strict=False):
            if key.text == "<<":
                for source in reversed(value.items or [value]):
                    self.merged += len(source.entries)
                    if self.merged > MAX_EVENTS:
                        raise ConfigError(f"{self.where}:{key.line}: merges more than {MAX_EVENTS} values")
                    inherited.update(source.entries)
            elif key.text is not None:
                own[key.text] = value
        return {**inherited, **own}


def mark(nodes: list[Node], seen: set[int]) -> None:
    """Put the ids of nodes and of everything below them into `seen`; what is there already is not entered."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            stack.extend(node.items or node.entries.values())


def walk_once(documents: list[Node], seen: set[int]) -> Iterator[Node]:
    """Every value of the documents that is not in `seen` when its turn comes, parents first; what is behind
    several anchors once. What is yielded, or put into `seen` meanwhile, is not entered again."""
    stack = [iter(documents)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
        elif id(node) not in seen:
            seen.add(id(node))
            yield node
            stack.append(iter(node.items or list(node.entries.values())))


def walk(documents: list[Node]) -> Iterator[Node]:
    """Every value of the documents, parents first. Stops after `MAX_STEPS` values."""
    stack = [iter(documents)]
    for _ in range(MAX_STEPS):
        while stack and (node := next(stack[-1], None)) is None:
            stack.pop()
        if not stack:
            return
        assert node is not None
        yield node
        if len(stack) <= MAX_DEPTH:
            stack.append(iter(node.items or list(node.entries.values())))
