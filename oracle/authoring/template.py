"""A new rule from its id and condition: it loads, and its examples are made from the condition."""

from __future__ import annotations

import datetime
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dodona.oracle.authoring.formatting import rule_text, write_atomically
from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.language.condition_parser import parse_condition
from dodona.oracle.language.condition_text import describe, to_data
from dodona.oracle.language.conditions import Compare, Condition, ConditionError, Not, compare, evaluate
from dodona.oracle.language.extends import folder_sibling
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.normal_forms import Clause, Literal, disjunctive_normal_form
from dodona.oracle.language.rulebook import OWN_SYSTEM, RuleBook
from dodona.oracle.language.yaml_source import MAX_INTEGER, parse_yaml, read_bytes
from dodona.oracle.systems.books import load_rulebook, parse_rulebook
from dodona.oracle.systems.registry import facts_of

Kind = typing.Literal["override", "require", "veto"]

MAX_EXAMPLES: Final = 8
"""Most examples of a side."""

DEFAULT_RUNNERS: Final = ("v2", "v1")
"""Runners of the book for which a rule is made, where that is not said."""


def examples_of(
    condition: Condition, registry: Mapping[str, FactSpec]
) -> tuple[list[dict[str, FactValue]], list[dict[str, FactValue]]]:
    """Facts for which a condition surely holds, and facts for which it surely does not.

    There is one for each way in which it can (up to MAX_EXAMPLES), and each hangs on the facts that it has.
    """
    return _ways(condition, registry), _ways(Not(condition), registry)


def _ways(condition: Condition, registry: Mapping[str, FactSpec]) -> list[dict[str, FactValue]]:
    found: list[dict[str, FactValue]] = []
    for clause in disjunctive_normal_form(condition):
        example = _satisfying(clause, registry)
        if example and example not in found and evaluate(condition, example) is True:
            found.append(example)
    return found[:MAX_EXAMPLES]


def _satisfying(clause: Clause, registry: Mapping[str, FactSpec]) -> dict[str, FactValue]:
    """Facts for which every literal holds; empty where there are none."""
    by_fact: dict[str, list[Literal]] = {}
    for literal in clause:
        by_fact.setdefault(literal.compare.fact, []).append(literal)
    example: dict[str, FactValue] = {}
    for name, literals in by_fact.items():
        for value in _candidates(registry[name], [literal.compare for literal in literals]):
            if all(compare(item.compare, value) is not item.negated for item in literals):
                example[name] = value
                break
        else:
            return {}
    return example


def _candidates(spec: FactSpec, compared: Sequence[Compare]) -> Iterator[FactValue]:
    """Values that between them satisfy whatever can be satisfied, the plainest first."""
    constants = [
        value
        for comparison in compared
        if comparison.op != "is_set"
        for value in (comparison.value if isinstance(comparison.value, tuple) else (comparison.value,))
    ]
    if spec.type == "bool":
        yield from (True,) if spec.section else (True, False)
    elif spec.type == "int":
        low = -MAX_INTEGER if spec.minimum is None else spec.minimum
        high = MAX_INTEGER if spec.maximum is None else spec.maximum
        numbers = [n for c in constants if isinstance(c, int) for n in (c, c + 1, c - 1)]
        yield from (n for n in [*numbers, max(low, 1), low, high] if low <= n <= high)
    else:
        texts = [str(constant) for constant in constants]
        if spec.domain is not None:
            texts += [value for value in spec.domain if value not in texts]
        else:
            texts.append(next(n for n in (f"another{'-' * i}" for i in range(99)) if n not in texts))
        if spec.type == "str":
            yield from texts
        else:
            yield from ((text,) for text in texts)
            yield tuple(texts)
            yield ()
    if spec.nullable:
        yield None


def new_rule(
    id: str,
    when: str,
    *,
    kind: Kind = "veto",
    runners: Sequence[str] = DEFAULT_RUNNERS[:1],
    feature: str | None = None,
    because: str | None = None,
    precedence: int | None = None,
    registry: Mapping[str, FactSpec] | None = None,
    today: datetime.date | None = None,
) -> dict[str, Any]:
    """A whole rule, as data. when: a condition, in YAML. registry: None is that of this runtime.

    Raises ConfigError where the condition can't be read, always holds or never does.
    """
    facts = facts_of(OWN_SYSTEM) if registry is None else registry
    condition = _condition(when, facts)
    fires, passes = examples_of(Not(condition) if kind == "require" else condition, facts)
    if not fires or not passes:
        raise ConfigError(f"--when {when!r}: the rule would {'never' if not fires else 'always'} fire")
    words = id.replace("-", " ")
    named = feature or _feature(words, kind, condition, facts)
    if kind == "override" and precedence is None:
        precedence = 1
    rule: dict[str, Any] = {"id": id, "kind": kind, "runners": list(runners)}
    if precedence is not None:
        rule["precedence"] = precedence
    return rule | {
        "when": to_data(condition),
        "feature": named,
        "because": because or _because(words, kind, runners, condition, facts),
        "since": str(today or datetime.date.today()),
        "examples": {"fires": _data(fires), "passes": _data(passes)},
    }


def _condition(when: str, facts: Mapping[str, FactSpec]) -> Condition:
    try:
        return parse_condition(parse_yaml(when, file="--when").data, facts)
    except ConditionError as error:
        raise ConfigError(f"--when {when!r}: {error.message} ({error.hint})") from None
    except RuleFileError as error:
        raise ConfigError(f"--when {when!r}: {error.message} ({error.hint})") from None


def _feature(words: str, kind: Kind, condition: Condition, facts: Mapping[str, FactSpec]) -> str:
    if isinstance(condition, Compare) and facts[condition.fact].type != "bool" and condition.op != "is_set":
        return f"{words} '{{{condition.fact}}}'"
    return describe(condition, facts, negate=True) if kind == "require" else words


def _because(
    words: str, kind: Kind, runners: Sequence[str], condition: Condition, facts: Mapping[str, FactSpec]
) -> str:
    names = " and ".join(runner.upper() for runner in runners)
    if kind == "override":
        return f"It asks for {names}." if names else "No runner can do this."
    ending = "s" if len(runners) == 1 else ""
    if kind == "require":
        return f"{names} need{ending} this: {describe(condition, facts)}."
    return f"{names} lack{ending} {words}."


def _data(examples: Sequence[Mapping[str, FactValue]]) -> list[dict[str, Any]]:
    return [
        {name: list(value) if isinstance(value, tuple) else value for name, value in example.items()}
        for example in examples
    ]


def checked_rule(rule: Mapping[str, Any], system: str, runners: Sequence[str] = DEFAULT_RUNNERS) -> str:
    """The rule's text. Raises RuleFileError where it would not load in a book with these runners."""
    text = rule_text(rule)
    names = ", ".join(runners)
    parse_rulebook(
        f"rulebook: new\ndescription: A new rule.\nsystem: {system}\nrunners: [{names}]\nrules:\n{text}",
        file="new rule",
    )
    return text


def append_rule(path: Path, rule: Mapping[str, Any]) -> RuleBook:
    """Put a rule at the end of a book's file, at once or not at all, and leave the rest of it as it is.

    Raises ConfigError where `rules` isn't the last key, RuleFileError where the book would not load.
    """
    raw = read_bytes(path)
    document = parse_yaml(raw, file=str(path))
    text = raw.decode("utf-8")
    rules = document.data.get("rules") if isinstance(document.data, dict) else None
    if not rules or list(document.data)[-1] != "rules" or document.position(("rules", 0)).column != 5:
        raise ConfigError(
            f"{path}: a rule is put at the end, but `rules` isn't the last key or isn't laid out as a list; "
            "run `dodona rules fmt` first"
        )
    longer = f"{text.rstrip()}\n\n{rule_text(rule)}"
    book = parse_rulebook(longer, file=str(path), sibling=folder_sibling(path))
    write_atomically(path, longer)
    return book


def free_precedence(path: Path) -> int:
    """The precedence after the last one that a book's overrides have."""
    taken = [rule.precedence for rule in load_rulebook(path).rules if rule.precedence is not None]
    return max(taken, default=0) + 1
