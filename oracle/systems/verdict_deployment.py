"""The deployment that a verdict is about."""

from __future__ import annotations

import functools

from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.loading import bundled_rulebooks
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.deployment import Deployment
from dodona.oracle.systems.registry import system_of


def deployment_of(verdict: Verdict, book: RuleBook | None = None) -> Deployment:
    """The deployment that a verdict is about; reads the model's config.json again.

    book: the book that decided, where it isn't one that comes with Dodona. Raises ConfigError where that is
    another one, where the verdict doesn't say for which machine it was reached, or where there is no model.
    """
    book = book_of(verdict) if book is None else book
    if book.content_hash != verdict.rulebook.content_hash:
        raise ConfigError(
            f"the verdict was reached by another content of rule book {verdict.rulebook.name} "
            f"({verdict.rulebook.content_hash[:12]}, not {book.content_hash[:12]}); give that book, or "
            "select again"
        )
    if verdict.environment is None:
        raise ConfigError("the verdict doesn't say for which machine it was reached; select again")
    return system_of(book.system).deployment_of(verdict, verdict.environment, book)


def book_of(verdict: Verdict) -> RuleBook:
    """The bundled book that decided. Raises ConfigError where it is none of them."""
    name = verdict.rulebook.name
    if name not in _bundled():
        raise ConfigError(f"rule book {name} doesn't come with Dodona: give it (rulebook=...)")
    return load_rulebook(name)


@functools.cache
def _bundled() -> frozenset[str]:
    return frozenset(bundled_rulebooks())
