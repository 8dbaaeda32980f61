"""The evaluation of a rule book by the rule engine; each book is compiled once per content and process."""

from __future__ import annotations

import os
import threading

from dodona.oracle.decide.durable.compiling import CompiledBook
from dodona.oracle.decide.durable.engine import Engine, EngineUnavailable
from dodona.oracle.decide.durable.trial import try_in_child
from dodona.oracle.decide.evaluate import Evaluation, evaluate_with
from dodona.oracle.decide.outcome import Firing
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import UNKNOWN, Unknown
from dodona.oracle.language.rulebook import RuleBook

_engine = Engine()
_books: dict[str, CompiledBook | EngineUnavailable] = {}
_books_lock = threading.Lock()


def _forget_after_fork() -> None:
    # the parent's engine may have been in the middle of an evaluation
    global _engine, _books_lock
    _engine = Engine()
    _books_lock = threading.Lock()
    _books.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def evaluate(book: RuleBook, facts: Facts, *, trusted: bool) -> Evaluation:
    """The same evaluation as `dodona.oracle.decide.evaluate.evaluate`, by durable-rules.

    facts: their values must fit their specifications. trusted: the book comes with Dodona; any other is first
    tried in a child process. Raises EngineUnavailable where durable-rules can't be imported or the trial
    failed, EngineFault where it misbehaves.
    """
    return evaluate_with(lambda known: firings(book, known, trusted=trusted), book, facts)


def firings(book: RuleBook, facts: Facts, *, trusted: bool) -> tuple[Firing, ...]:
    """The same firings as `dodona.oracle.decide.evaluate.firings`, by durable-rules; see `evaluate`."""
    compiled = _compiled(book, trusted=trusted)
    sure = {
        ruleset.clauses[name]
        for ruleset in compiled.certain
        for name in _engine.fire(ruleset, compiled.fields(ruleset, facts))
    }
    possible: set[str] = set()
    if any(isinstance(facts.get(name, UNKNOWN), Unknown) for name in book.reads):
        for ruleset in compiled.possible:
            names = _engine.fire(ruleset, compiled.fields(ruleset, facts))
            possible.update(ruleset.clauses[name] for name in names)
    return tuple(Firing(r.id, certain=r.id in sure) for r in book.rules if r.id in sure or r.id in possible)


def _compiled(book: RuleBook, *, trusted: bool) -> CompiledBook:
    found = _books.get(book.content_hash)
    if found is None:
        with _books_lock:
            found = _books.get(book.content_hash)
            if found is None:
                found = _compile(book, trusted=trusted)
                _books[book.content_hash] = found
    if isinstance(found, EngineUnavailable):
        raise EngineUnavailable(str(found))
    return found


def _compile(book: RuleBook, *, trusted: bool) -> CompiledBook | EngineUnavailable:
    try:
        compiled = CompiledBook(book)
        if not trusted:
            try_in_child(compiled)
        _engine.register(compiled.rulesets)
    except EngineUnavailable as error:
        return error
    return compiled
