"""Rule books by name, by path or from text, each read with the facts of its system."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from dodona.oracle.errors import ConfigError, nearest
from dodona.oracle.language.extends import Resolved, Sibling, resolve
from dodona.oracle.language.facts import FactSpec
from dodona.oracle.language.loading import bundled_rulebooks, make_rulebook, resolve_bundled, resolve_file
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.language.yaml_source import parse_yaml
from dodona.oracle.systems.registry import facts_of, nearest_book

__all__ = [
    "bundled_rulebook",
    "bundled_rulebooks",
    "load_rulebook",
    "parse_rulebook",
    "resolve_rulebook",
    "validate_rulebook",
]


def load_rulebook(source: str | os.PathLike[str] | RuleBook) -> RuleBook:
    """A book by name ("dodona"), by path (ending .yaml or .yml), or as it is.

    Raises ConfigError for an unknown name, RuleFileError (file, line, column, hint) for a malformed book.
    """
    if isinstance(source, RuleBook):
        return source
    if isinstance(source, str) and not source.endswith((".yaml", ".yml")):
        return bundled_rulebook(source)
    return validate_rulebook(resolve_rulebook(source))


@functools.lru_cache(maxsize=64)
def bundled_rulebook(name: str) -> RuleBook:
    """A book that comes with Dodona, read once per process. Raises ConfigError for an unknown name."""
    return validate_rulebook(resolve_rulebook(name))


def parse_rulebook(
    text: str | bytes,
    *,
    file: str = "<text>",
    facts: Mapping[str, FactSpec] | None = None,
    sibling: Sibling | None = None,
) -> RuleBook:
    """Parse a book from text. Raises RuleFileError.

    facts: the registry; None: the one of the book's system. sibling: reads the books that it may extend.
    """
    return validate_rulebook(resolve(parse_yaml(text, file=file), sibling), facts)


def resolve_rulebook(source: str | os.PathLike[str]) -> Resolved:
    """The text of a book by name or path, with the place of each value, put together with what it extends.

    Raises ConfigError for an unknown name, RuleFileError for text that can't be read.
    """
    if not isinstance(source, str) or source.endswith((".yaml", ".yml")):
        return resolve_file(source)
    known = bundled_rulebooks()
    if source not in known:
        hint = nearest_book(source, known) or nearest(source, known) or f"There are: {', '.join(known)}."
        raise ConfigError(f"no rule book is named '{source}'. {hint} A path to a book ends with .yaml.")
    return resolve_bundled(source)


def validate_rulebook(resolved: Resolved, facts: Mapping[str, FactSpec] | None = None) -> RuleBook:
    """The book of a text that was put together. Raises RuleFileError at the culprit's place.

    facts: the registry; None: the one of the book's system.
    """
    return make_rulebook(resolved, facts_of if facts is None else lambda system, runners: facts)
