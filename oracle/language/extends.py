"""A rule book that extends another: the text of the two put together before it is checked.

    rulebook: vllm/0.23.0
    extends: 0.22.0              # the book 0.22.0.yaml in the same folder
    remove: [reasoning-budget]   # ids of rules that no longer hold
    rules:                       # new rules, and changed ones: of those, the keys that differ
      - id: architecture
        when: ...

Each other top-level key stands in place of the extended book's. Only books of the same folder can be
extended.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dodona.oracle.errors import nearest
from dodona.oracle.language.yaml_source import DataPath, Document, Position, read_yaml

MAX_DEPTH: Final = 16
"""Longest chain of books that extend each other."""

Sibling = Callable[[str], Document | None]
"""Reads the book of a name from the folder of the book that names it; None where there is none."""

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Form of the name of a book that is extended: never a path."""

_NAME = re.compile(NAME_PATTERN.replace("$", r"\Z"))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A book's whole text: `document` is complete, `parent` is the book that it extends."""

    document: Document
    parent: Resolved | None = None


def folder_sibling(path: Path) -> Sibling:
    """Reads the books beside the file `path`, never following a link out of its folder."""
    folder = path.resolve().parent

    def read(name: str) -> Document | None:
        found = (folder / f"{name}.yaml").resolve()
        return read_yaml(found) if found.parent == folder and found.is_file() else None

    return read


def resolve(document: Document, sibling: Sibling | None, *, depth: int = 0) -> Resolved:
    """Put a book together with what it extends. Raises RuleFileError at the culprit's place.

    sibling: None where a book has no folder, and so can extend nothing.
    """
    data = document.data
    if not isinstance(data, dict) or "extends" not in data:
        if isinstance(data, dict) and "remove" in data:
            document.fail(("remove",), "removes rules but extends no book", "Add `extends: NAME`.", key=True)
        return Resolved(document)
    name = data["extends"]
    if not isinstance(name, str) or not _NAME.match(name):
        document.fail(
            ("extends",), f"extends {name!r}, which is no book's name", "Name a book of this folder: 0.22.0"
        )
    if depth >= MAX_DEPTH:
        document.fail(("extends",), f"extends more than {MAX_DEPTH} books, or itself", "Shorten the chain.")
    if sibling is None:
        document.fail(("extends",), "extends a book, but has no folder", "Load it from a file.")
    found = sibling(name)
    if found is None:
        document.fail(
            ("extends",),
            f"there is no book {name}.yaml in this folder",
            "Only books beside it can be extended.",
        )
    parent = resolve(found, sibling, depth=depth + 1)
    return Resolved(_merged(document, parent.document), parent)


def _merged(child: Document, parent: Document) -> Document:
    if not isinstance(parent.data, dict) or not isinstance(parent.data.get("rules"), list):
        child.fail(("extends",), f"extends {parent.file}, which is no rule book", "Mend that file first.")
    own = child.data.get("rules", [])
    if not isinstance(own, list):
        child.fail(("rules",), "'rules' is not a list", "Write `rules:` and a list of rules.")
    inherited = {_id(rule): rule for rule in parent.data["rules"]}
    removed = _removed(child, inherited)
    changed: dict[object, tuple[int | None, dict[str, Any]]] = {}
    added: list[tuple[int, Any]] = []
    for number, rule in enumerate(own):
        key = _id(rule)
        if key in removed:
            child.fail(("rules", number, "id"), f"'{key}' is both removed and changed", "Do one of the two.")
        if key in inherited and key not in changed:
            changed[key] = (number, rule)
        else:
            # a second entry of one id is kept, so that the check for distinct ids finds it
            added.append((number, rule))
    origin: list[int | None] = []
    rules: list[Any] = []
    for key, rule in inherited.items():
        if key in removed:
            continue
        index, change = changed.get(key, (None, {}))
        rules.append({**rule, **change} if isinstance(rule, dict) else rule)
        origin.append(index)
    for position, rule in added:
        rules.append(rule)
        origin.append(position)
    top = {k: v for k, v in child.data.items() if k not in ("extends", "remove", "rules")}
    data = {**parent.data, **top, "rules": rules}
    return _relocated(child, data, origin)


def _id(rule: Any) -> object:
    found = rule.get("id") if isinstance(rule, dict) else None
    return found if isinstance(found, str) else id(rule)


def _removed(child: Document, inherited: dict[object, Any]) -> set[object]:
    removed = child.data.get("remove", [])
    if not isinstance(removed, list):
        child.fail(("remove",), "'remove' is not a list", "Write `remove: [ID, ...]`.")
    for index, name in enumerate(removed):
        if not isinstance(name, str) or name not in inherited:
            hint = nearest(str(name), [k for k in inherited if isinstance(k, str)]) or "Name a rule's id."
            child.fail(("remove", index), f"removes '{name}', which the extended book doesn't have", hint)
        if name in removed[:index]:
            child.fail(("remove", index), f"'{name}' is removed twice", "Remove one of them.")
    return set(removed)


def _relocated(child: Document, data: Any, origin: list[int | None]) -> Document:
    """The merged data with the places of the child's own text; what is inherited lies at its `extends`."""
    target = {index: i for i, index in enumerate(origin) if index is not None}

    def moved(path: DataPath) -> DataPath | None:
        if path[:1] != ("rules",) or len(path) < 2:
            return path
        index = path[1]
        return ("rules", target[index], *path[2:]) if isinstance(index, int) and index in target else None

    def relocate(places: Any) -> dict[DataPath, Position]:
        return {new: place for old, place in places.items() if (new := moved(old)) is not None}

    positions = relocate(child.positions)
    for i, index in enumerate(origin):
        if index is None:
            positions["rules", i] = child.positions["extends",]
    return Document(
        child.file, data, MappingProxyType(positions), MappingProxyType(relocate(child.key_positions))
    )
