"""Reads rule books from files and from those that come with Dodona, and checks them.

The facts that a book may read depend on its system. The caller passes the registries of the systems;
`dodona.oracle.systems.books` does so for all systems that there are.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dodona.oracle.errors import RuleFileError, nearest
from dodona.oracle.language.consequence import Consequence
from dodona.oracle.language.extends import Resolved, folder_sibling, resolve
from dodona.oracle.language.facts import FactSpec
from dodona.oracle.language.rule import Examples, Rule
from dodona.oracle.language.rulebook import DeclaredException, EnvironmentVariable, RuleBook
from dodona.oracle.language.yaml_source import TYPE_NAMES, DataPath, Document, parse_yaml, read_yaml

Registries = Callable[[object, object], Mapping[str, FactSpec]]
"""The registry of facts for the values of a book's `system` and `runners`, which may be anything where
it is malformed."""


def bundled_rulebooks() -> tuple[str, ...]:
    """Names of the books that come with Dodona, for instance "dodona" or "vllm/0.27.0"."""
    root = importlib.resources.files("dodona") / "rules"
    with importlib.resources.as_file(root) as folder:
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return tuple(path.with_suffix("").as_posix() for path in paths)


def resolve_bundled(name: str) -> Resolved:
    """The text of a bundled book (a name of `bundled_rulebooks`), put together with what it extends."""
    document = _bundled_document(name)
    if document is None:
        raise KeyError(name)
    folder = name[: name.rfind("/") + 1]
    return resolve(document, lambda sibling: _bundled_document(folder + sibling))


@functools.lru_cache(maxsize=64)
def _bundled_document(name: str) -> Document | None:
    source = importlib.resources.files("dodona") / "rules"
    for part in f"{name}.yaml".split("/"):
        source = source / part
    return parse_yaml(source.read_bytes(), file=f"rules/{name}.yaml") if source.is_file() else None


def resolve_file(file: str | os.PathLike[str]) -> Resolved:
    """The text of a book's file, put together with what it extends. Raises RuleFileError."""
    path = Path(file)
    return resolve(read_yaml(path), folder_sibling(path))


def make_rulebook(resolved: Resolved, registries: Registries) -> RuleBook:
    """The book of a text that was put together. Raises RuleFileError at the culprit's place."""
    document = resolved.document
    if not isinstance(document.data, dict):
        document.fail((), "a rule book is a mapping", "Begin with `rulebook: NAME`.")
    try:
        registry = registries(document.data.get("system"), document.data.get("runners", ()))
        return RuleBook.model_validate(document.data, context=registry)
    except ValidationError as error:
        if resolved.parent is not None:
            # what is inherited is reported in the file that it comes from
            make_rulebook(resolved.parent, registries)
        found = error.errors(include_url=False)
        # a missing key is often the consequence of a misspelt one, whose error is the more helpful
        causes = [item for item in found if item["type"] not in ("missing", "too_short")]
        causes = causes or [item for item in found if item["type"] == "missing"] or found
        problems = [_explained(document, item) for item in causes[:_MOST_EXPLAINED]]
        raise min(problems, key=lambda problem: (problem.line, problem.column)) from None


_MOST_EXPLAINED: Final = 100
"""A search for the nearest name takes a thousandth of a second, and one problem is told."""

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
}


def _explained(document: Document, item: ErrorDetails) -> RuleFileError:
    """A pydantic error as RuleFileError: its place in the document, what was expected, and how to mend it."""
    context: Mapping[str, Any] = item.get("ctx") or {}
    path = _data_path(document, item["loc"])
    path = (*path, *context.get("path", ()))
    key = bool(context.get("key", False))
    kind, name = item["type"], str(item["loc"][-1]) if item["loc"] else ""
    message, hint = item["msg"], str(context.get("hint", ""))
    given = TYPE_NAMES.get(type(item["input"]), "")
    if kind == "missing":
        message, hint = f"'{name}' is missing", f"Add `{name}: ...`; docs/rules.md shows an example."
        path = path[:-1] if path and path[-1] == name else path
    elif kind == "extra_forbidden":
        message, key = f"unknown key '{name}'", True
        model: type[BaseModel] = RuleBook
        if path[:1] in (("rules",), ("consequences",)) and len(path) >= 3:
            owner: type[BaseModel] = Rule if path[0] == "rules" else Consequence
            model = Examples if "examples" in path[2:-1] else owner
        elif path[:1] == ("environment",):
            model = EnvironmentVariable
        elif path[:1] == ("exceptions",):
            model = DeclaredException
        hint = nearest(name, model.model_fields) or f"Known keys: {', '.join(model.model_fields)}."
    elif kind == "literal_error":
        message, hint = f"'{name}' is {item['input']!r}", f"Expected {context['expected']}."
    elif kind in ("tuple_type", "list_type"):
        message, hint = f"'{name}' is {given}, not a list", "Write `[...]`."
    elif kind in ("string_type", "int_type", "model_type", "dict_type", "mapping_type") or kind.startswith(
        "date"
    ):
        wanted = _WANTED.get(kind, "a date such as 2026-01-31")
        message = f"{_show(name)} is {given}, not {wanted}"
        hint = (
            "Quote it."
            if wanted == "text" and given in ("a whole number", "true/false")
            else f"Write {wanted}."
        )
    elif kind == "string_pattern_mismatch":
        message = f"{_show(name)} is {item['input']!r}, which has a wrong form"
        hint = f"Use lower-case words joined by '-', or see docs/rules.md; the form is {context['pattern']}."
    elif kind == "too_short":
        message, hint = f"{_show(name)} is empty or too short", f"Give at least {context['min_length']}."
    elif not hint:
        message = f"{_show(name)}: {message.removeprefix('Input ')}"
        hint = f"docs/rules.md describes {_show(name)}."
    position = document.position(path, key=key)
    return RuleFileError(document.file, position.line, position.column, message, hint)


def _show(name: str) -> str:
    return f"entry {name}" if name.isdigit() else f"'{name}'"


def _data_path(document: Document, loc: Sequence[str | int]) -> DataPath:
    """pydantic's location without the steps that aren't in the document (names of union members)."""
    path: DataPath = ()
    for step in loc:
        if (*path, step) in document.positions or step == loc[-1]:
            path = (*path, step)
    return path
