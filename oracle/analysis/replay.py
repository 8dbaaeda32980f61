"""Replays recorded cases of vLLM: what a release answered, against what a rule book answers.

A file holds one JSON object a line (.jsonl, or .jsonl.gz): the configuration's final field values in
`config`, `env` (the environment variable's text, or null), `has_triton`, `platform`, `logitsproc_plugins`,
and in `expect` what the release's own code answered. docs/vllm-books.md describes the format. The book
decides, whatever release a case is of.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import FactValue
from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import PLATFORMS
from dodona.oracle.systems.registry import VLLM
from dodona.oracle.systems.vllm.facts import config_facts

_RUNNERS: Mapping[bool, RunnerName] = {True: "v2", False: "v1"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to a case, and why."""

    runner: RunnerName | None
    """None where the choice itself raised; then nothing else is compared."""
    starts: bool
    unsupported_v1: frozenset[str] | None
    """Features that V1 lacks; None where the release has no such list."""
    unsupported_v2: frozenset[str] | None
    why: tuple[str, ...]
    """The recorded messages, or the rules that fired."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A case to which the book answers otherwise than the release did."""

    file: str
    line: int
    about: tuple[str, ...]
    """What differs: "choice", "startup", "unsupported by V1", "unsupported by V2"."""
    recorded: Answer
    book: Answer

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

    Raises ConfigError (file:line) for a case that can't be read, and for a book of another system than vLLM.
    """
    total = agreed = 0
    kept: list[Disagreement] = []
    for file in files:
        for line, case in read_cases(file):
            try:
                recorded, answered = recorded_answer(case), book_answer(book, case)
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
    path = Path(file)
    opener = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for line, text in enumerate(stream, 1):
                if text.strip():
                    yield line, _parse(text, f"{path}:{line}")
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}:{line + 1}: is damaged: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse(text: str, place: str) -> Mapping[str, Any]:
    try:
        case = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: is not a line of JSON: {error}") from None
    if not isinstance(case, dict):
        raise ConfigError(f"{place}: expected a JSON object")
    return case


def case_facts(book: RuleBook, case: Mapping[str, Any]) -> dict[str, FactValue]:
    """The facts of a recorded case, for `book`. Raises ConfigError naming the field."""
    if book.system != VLLM:
        raise ConfigError(
            f"recorded cases are vLLM's; rule book {book.rulebook} describes {book.system}. "
            "Replay them with a book of `system: vllm`, for instance vllm/0.25.1"
        )
    config = _field(case, "config", dict)
    env = _field(case, "env", str, None)
    platform = _field(case, "platform", str)
    if platform not in PLATFORMS:
        raise ConfigError(f"platform: expected one of {', '.join(PLATFORMS)}, got {platform!r}")
    override = None if book.environment is None else book.environment.parse(env)
    return {
        **config_facts(config, book.assume),
        "environment.override": override,
        "environment.has_triton": _field(case, "has_triton", bool),
        "environment.platform": platform,
        "environment.logitsproc_plugins": _field(case, "logitsproc_plugins", bool),
    }


def book_answer(book: RuleBook, case: Mapping[str, Any]) -> Answer:
    """What `book` answers to a recorded case. Raises ConfigError naming the field."""
    env = _field(case, "env", str, None)
    try:
        if book.environment is not None:
            book.environment.parse(env)
    except ConfigError as error:
        # a value that isn't a number: vLLM's choice raises too
        return Answer(None, True, None, None, (str(error),))
    found = evaluate(book, case_facts(book, case))
    facts, outcome = found.facts, found.outcome
    fired = [book.by_id[firing.rule] for firing in found.firings]

    def lacks(runner: RunnerName) -> frozenset[str]:
        return frozenset(r.show_feature(facts) for r in fired if r.kind == "veto" and runner in r.runners)

    return Answer(
        outcome.runner,
        not outcome.refusals,
        lacks("v1"),
        lacks("v2"),
        tuple(f"[{rule.id}] {rule.show_feature(facts)}" for rule in fired),
    )


def recorded_answer(case: Mapping[str, Any]) -> Answer:
    """What the release answered, as recorded. Raises ConfigError naming the field."""
    expect = _field(case, "expect", dict)
    use_v2 = _field(expect, "use_v2", bool, None)
    startup = expect.get("startup")
    why = [
        item["message"]
        for item in (expect.get("error"), startup)
        if isinstance(item, dict) and "message" in item
    ]
    why += [item for item in expect.get("warnings") or () if isinstance(item, str)]
    if use_v2 is None:
        return Answer(None, True, None, None, tuple(map(str, why)))
    return Answer(
        _RUNNERS[use_v2],
        startup == "ok",
        _features(expect, "unsupported_v1"),
        _features(expect, "unsupported_v2"),
        tuple(map(str, why)),
    )


def differences(recorded: Answer, book: Answer) -> tuple[str, ...]:
    """What two answers to one case differ about.

    Lists compare as sets; those that weren't recorded don't count.
    """
    if recorded.runner != book.runner:
        return ("choice",)
    if recorded.runner is None:
        return ()
    about = ["startup"] if recorded.starts != book.starts else []
    if recorded.unsupported_v1 is not None and recorded.unsupported_v1 != book.unsupported_v1:
        about.append("unsupported by V1")
    if recorded.unsupported_v2 is not None and recorded.unsupported_v2 != book.unsupported_v2:
        about.append("unsupported by V2")
    return tuple(about)


def _features(expect: Mapping[str, Any], name: str) -> frozenset[str] | None:
    found = expect.get(name)
    if found is not None and not (isinstance(found, list) and all(isinstance(item, str) for item in found)):
        raise ConfigError(f"expect.{name}: expected a list of texts or null, got {found!r}")
    return None if found is None else frozenset(found)


def _field(case: Mapping[str, Any], name: str, *types: type | None) -> Any:
    value = case.get(name)
    if (None in types and value is None) or type(value) in types:
        return value
    raise ConfigError(f"{name}: expected {_TYPES[types[0]]}, got {value!r}")


_TYPES: Mapping[type | None, str] = {dict: "an object", str: "a text", bool: "true or false"}


def _shown(who: str, answer: Answer, about: Sequence[str]) -> list[str]:
    if answer.runner is None:
        lines = [f"  {who}: the choice is refused"]
    else:
        lines = [f"  {who}: {answer.runner}, which {'starts' if answer.starts else 'does not start'}"]
    for name, features in (("V1", answer.unsupported_v1), ("V2", answer.unsupported_v2)):
        if f"unsupported by {name}" in about and features is not None:
            lines.append(f"    unsupported by {name}: {', '.join(sorted(features)) or 'nothing'}")
    return lines + [f"    {text}" for text in answer.why]
