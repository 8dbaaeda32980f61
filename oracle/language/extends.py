"""A rule book that extends another: the text of the two put together before it is checked.

    rulebook: vllm/0.23.0
    extends: 0.22.0              # the book 0.22.0.yaml in the same folder
    remove: [reasoning-budget]   # ids of rules and consequences that no longer hold
    rules:                       # new rules, and changed ones: of those, the keys that differ
      - id: architecture
        when: ...

`consequences` are put together like rules. Each other top-level key stands in place of the extended book's.
Only books of the same folder can be extended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


LISTS: Final = ("consequences", "rules")
"""Keys of a book that hold entries with an id each; what a child says of an id changes or adds one."""


def _merged(child: Document, parent: Document) -> Document:
    if not isinstance(parent.data, dict) or not isinstance(parent.data.get("rules"), list):
        child.fail(("extends",), f"extends {parent.file}, which is no rule book", "Mend that file first.")
    inherited = {key: {_id(entry): entry for entry in parent.data.get(key) or []} for key in LISTS}
    removed = _removed(child, {name: None for entries in inherited.values() for name in entries})
    data = {k: v for k, v in {**parent.data, **child.data}.items() if k not in ("extends", "remove", *LISTS)}
    origins: dict[str, list[int | None]] = {}
    for key in LISTS:
        merged, origins[key] = _merged_list(child, key, inherited[key], removed)
        if merged or key in parent.data or key in child.data:
            data[key] = merged
    return _relocated(child, data, origins)


def _merged_list(
    child: Document, key: str, inherited: dict[object, Any], removed: set[object]
) -> tuple[list[Any], list[int | None]]:
    """The entries of a list, and for each its index in the child's list (None: wholly inherited)."""
    own = child.data.get(key, [])
    if not isinstance(own, list):
        child.fail((key,), f"'{key}' is not a list", f"Write `{key}:` and a list of {key}.")
    changed: dict[object, tuple[int | None, dict[str, Any]]] = {}
    added: list[tuple[int, Any]] = []
    for number, entry in enumerate(own):
        name = _id(entry)
        if name in removed:
            child.fail((key, number, "id"), f"'{name}' is both removed and changed", "Do one of the two.")
        if name in inherited and name not in changed:
            changed[name] = (number, entry)
        else:
            # a second entry of one id is kept, so that the check for distinct ids finds it
            added.append((number, entry))
    origin: list[int | None] = []
    entries: list[Any] = []
    for name, entry in inherited.items():
        if name in removed:
            continue
        index, change = changed.get(name, (None, {}))
        entries.append({**entry, **change} if isinstance(entry, dict) else entry)
        origin.append(index)
    for position, entry in added:
        entries.append(entry)
        origin.append(position)
    return entries, origin


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


def _relocated(child: Document, data: Any, origins: Mapping[str, list[int | None]]) -> Document:
    """The merged data with the places of the child's own text; what is inherited lies at its `extends`."""
    targets = {
        key: {index: i for i, index in enumerate(origin) if index is not None}
        for key, origin in origins.items()
    }

    def moved(path: DataPath) -> DataPath | None:
        if len(path) < 2 or path[0] not in targets:
            return path
        index, target = path[1], targets[str(path[0])]
        return (path[0], target[index], *path[2:]) if isinstance(index, int) and index in target else None

    def relocate(places: Any) -> dict[DataPath, Position]:
        return {new: place for old, place in places.items() if (new := moved(old)) is not None}

    positions = relocate(child.positions)
    for key, origin in origins.items():
        for i, index in enumerate(origin):
            if index is None:
                positions[key, i] = child.positions["extends",]
    return Document(
        child.file, data, MappingProxyType(positions), MappingProxyType(relocate(child.key_positions))
    )
