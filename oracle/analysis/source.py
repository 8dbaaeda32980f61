"""Rule books with the place of everything in them: by name, file, folder, or git revision.

- `dodona`: a bundled book
- `rules/vllm/0.25.0.yaml`: a file
- `rules/`: a folder, with every .yaml below it
- `HEAD~1:rules/dodona.yaml`: a file, or a folder, of a git revision; paths count from the repository's top
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import All, AnyOf, Compare, Condition, Not
from dodona.oracle.language.extends import LISTS, Resolved, Sibling, resolve
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.language.yaml_source import MAX_BYTES, DataPath, Document, Position, parse_yaml
from dodona.oracle.systems.books import resolve_rulebook, validate_rulebook


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a rule file; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class SourcedBook:
    """A rule book, and where each part of it is written: in its own file or in one that it extends."""

    book: RuleBook
    resolved: Resolved

    def rule_place(self, rule: str, path: DataPath = (), *, key: bool = False) -> Place:
        """Where a rule or consequence (or what `path` leads to inside it) is written."""
        source: Resolved | None = self.resolved
        nearest: Place | None = None
        while source is not None:
            entry = _entry(source.document, rule)
            if entry is None:
                break
            document = source.document
            full = (*entry, *path)
            known = document.key_positions if key else document.positions
            if full in known and (path or source.parent is None or (*entry, "id") in known):
                return _place(document, known[full])
            if nearest is None and (*entry, "id") in document.positions:
                nearest = _place(document, document.position(full, key=key))
            source = source.parent
        return nearest or _place(self.resolved.document, Position(1, 1))

    def place(self, path: DataPath, *, key: bool = False) -> Place:
        """Where something of the book beside its rules is written."""
        source: Resolved | None = self.resolved
        while source is not None:
            known = source.document.key_positions if key else source.document.positions
            if path in known:
                return _place(source.document, known[path])
            source = source.parent
        return _place(self.resolved.document, self.resolved.document.position(path, key=key))


def _entry(document: Document, name: str) -> DataPath | None:
    """The path to the rule or consequence of an id; None where the document has none."""
    if not isinstance(document.data, dict):
        return None
    for key in LISTS:
        for i, entry in enumerate(document.data.get(key, [])):
            if isinstance(entry, dict) and entry.get("id") == name:
                return (key, i)
    return None


def _place(document: Document, position: Position) -> Place:
    return Place(document.file, position.line, position.column)


def condition_paths(condition: Condition, path: DataPath = ("when",)) -> list[tuple[Condition, DataPath]]:
    """Every part of a condition with the path to it inside its rule, outermost first."""
    found: list[tuple[Condition, DataPath]] = [(condition, path)]
    if isinstance(condition, Not):
        found += condition_paths(condition.part, (*path, "not"))
    elif isinstance(condition, (All, AnyOf)):
        word = "all" if isinstance(condition, All) else "any"
        for i, part in enumerate(condition.parts):
            found += condition_paths(part, (*path, word, i))
    else:
        assert isinstance(condition, Compare)
    return found


# --- finding books


Load = Callable[[], SourcedBook]
"""Reads one book. Raises RuleFileError or ConfigError."""


def books_of(source: str) -> Mapping[str, Load]:
    """The books that a source names, by their path inside it ("" for a single one).

    Raises ConfigError where there is no such source.
    """
    revision, colon, path = source.partition(":")
    if colon and not Path(source).exists():
        return _git_books(source, revision, path)
    folder = Path(source)
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*.y*ml") if p.suffix in (".yaml", ".yml") and p.is_file())
        if not files:
            raise ConfigError(f"{source}: the folder has no rule books (.yaml)")
        return {file.relative_to(folder).as_posix(): _reader(str(file)) for file in files}
    return {"": _reader(source)}


def load_sourced(source: str) -> SourcedBook:
    """The one book that a source names. Raises ConfigError for a folder, RuleFileError for a bad book."""
    books = books_of(source)
    if "" not in books:
        raise ConfigError(f"{source} is a folder: name one book in it")
    return books[""]()


def sourced_text(text: str | bytes, *, file: str = "<text>", sibling: Sibling | None = None) -> SourcedBook:
    """A book from text, as `parse_rulebook` reads it."""
    return _sourced(resolve(parse_yaml(text, file=file), sibling))


def _sourced(resolved: Resolved) -> SourcedBook:
    return SourcedBook(validate_rulebook(resolved), resolved)


def _reader(source: str) -> Load:
    return lambda: _sourced(resolve_rulebook(source))


# --- git


def _git_books(source: str, revision: str, path: str) -> Mapping[str, Load]:
    top = PurePosixPath(path)
    if not revision or revision.startswith("-") or top.is_absolute() or ".." in top.parts:
        raise ConfigError(f"{source}: expected REVISION:PATH, with the path from the repository's top")
    if path.endswith((".yaml", ".yml")):
        return {"": _git_reader(revision, top)}
    listed = _git(source, "ls-tree", "-r", "-z", "--name-only", f"{revision}:{path}").decode()
    names = sorted(name for name in listed.split("\0") if name.endswith((".yaml", ".yml")))
    if not names:
        raise ConfigError(f"{source}: the folder has no rule books (.yaml)")
    return {name: _git_reader(revision, top / name) for name in names}


def _git_reader(revision: str, path: PurePosixPath) -> Load:
    def document(file: PurePosixPath) -> Document:
        label = f"{revision}:{file}"
        return parse_yaml(_git(label, "cat-file", "blob", label), file=label)

    def sibling(name: str) -> Document | None:
        beside = path.parent / f"{name}.yaml"
        try:
            return document(beside)
        except ConfigError:
            return None

    return lambda: _sourced(resolve(document(path), sibling))


def _git(label: str, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{label}: git can't be run: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise ConfigError(f"{label}: {said or 'git does not know it'}")
    return done.stdout[: MAX_BYTES + 1]
