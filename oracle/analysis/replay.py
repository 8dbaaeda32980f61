"""Replays recorded cases of a system: what a release answered, against what a rule book answers.

A file holds one JSON object a line (.jsonl, or .jsonl.gz), which the book's system reads. `env` is the text
of the book's environment variable, or null. docs/vllm-books.md describes vLLM's cases. The book decides,
whatever release a case is of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.errors import ConfigError
from dodona.oracle.files import parse_json, read_lines
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.registry import system_of
from dodona.oracle.systems.system import RecordedAnswer

MAX_CASES_BYTES: Final = 256 << 20
"""Largest file of cases, unpacked."""

MAX_CASE_BYTES: Final = 4 << 20
"""Longest case."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A case to which the book answers otherwise than the release did."""

    file: str
    line: int
    about: tuple[str, ...]
    """What differs: "choice", "startup", "unsupported by V1" and so on by the runners' names."""
    recorded: RecordedAnswer
    book: RecordedAnswer

    def __str__(self) -> str:
        """Some lines of text, the first of which begins with file:line."""
        return "\n".join(
            [
                f"{self.file}:{self.line}: they differ about {', '.join(self.about)}",
                *_shown("recorded", self.recorded, self.about),
                *_shown("book", self.book, self.about),
            ]
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found."""

    total: int
    agreed: int
    disagreements: tuple[Disagreement, ...]
    """The first ones; `total - agreed` is their whole number."""


def replay(book: RuleBook, files: Iterable[str | os.PathLike[str]], *, keep: int = 10) -> Replay:
    """Compare `book` with every case of `files`; the first `keep` disagreements are told.

    Raises ConfigError (file:line) for a case that can't be read, and for a book of a system without recorded
    cases.
    """
    system = system_of(book.system)
    total = agreed = 0
    kept: list[Disagreement] = []
    for file in files:
        for line, case in read_cases(file):
            try:
                answered = book_answer(book, case)
                recorded = system.recorded_answer(case)
            except ConfigError as error:
                raise ConfigError(f"{file}:{line}: {error}") from None
            about = differences(recorded, answered)
            total += 1
            agreed += not about
            if about and len(kept) < keep:
                kept.append(Disagreement(str(file), line, about, recorded, answered))
    return Replay(total, agreed, tuple(kept))


def read_cases(file: str | os.PathLike[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The cases of a file with their line numbers. Raises ConfigError (file:line)."""
    for line, text in enumerate(read_lines(file, limit=MAX_CASES_BYTES, longest=MAX_CASE_BYTES), 1):
        if text.strip():
            yield line, _parse(text, f"{file}:{line}")


def _parse(text: str, place: str) -> Mapping[str, Any]:
    case = parse_json(text, where=place)
    if not isinstance(case, dict):
        raise ConfigError(f"{place}: expected a JSON object")
    return case


def book_answer(book: RuleBook, case: Mapping[str, Any]) -> RecordedAnswer:
    """What `book` answers to a recorded case. Raises ConfigError that names the field."""
    system = system_of(book.system)
    try:
        if book.environment is not None and isinstance(case.get("env"), str):
            book.environment.parse(case["env"])
    except ConfigError as error:
        # the variable's text has no meaning: the system's choice raises too
        return RecordedAnswer(None, True, {}, (str(error),))
    found = evaluate(book, system.recorded_facts(case, book))
    facts, outcome = found.facts, found.outcome
    fired = [book.by_id[firing.rule] for firing in found.firings]
    unsupported = {
        runner: frozenset(r.show_feature(facts) for r in fired if r.kind == "veto" and runner in r.runners)
        for runner in book.runners
    }
    why = tuple(f"[{rule.id}] {rule.show_feature(facts)}" for rule in fired)
    return RecordedAnswer(outcome.runner, not outcome.refusals, unsupported, why)


def differences(recorded: RecordedAnswer, book: RecordedAnswer) -> tuple[str, ...]:
    """What two answers to one case differ about.

    Lists compare as sets; those that weren't recorded don't count.
    """
    if recorded.runner != book.runner:
        return ("choice",)
    if recorded.runner is None:
        return ()
    about = ["startup"] if recorded.starts != book.starts else []
    about += [
        _unsupported_by(runner)
        for runner, features in recorded.unsupported.items()
        if features is not None and features != book.unsupported.get(runner)
    ]
    return tuple(about)


def _unsupported_by(runner: str) -> str:
    return f"unsupported by {runner.upper()}"


def _shown(who: str, answer: RecordedAnswer, about: Sequence[str]) -> list[str]:
    if answer.runner is None:
        lines = [f"  {who}: the choice is refused"]
    else:
        lines = [f"  {who}: {answer.runner}, which {'starts' if answer.starts else 'does not start'}"]
    for runner, features in answer.unsupported.items():
        name = _unsupported_by(runner)
        if name in about and features is not None:
            lines.append(f"    {name}: {', '.join(sorted(features)) or 'nothing'}")
    return lines + [f"    {text}" for text in answer.why]
