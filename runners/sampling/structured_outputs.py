"""The form that a request's output must have: a JSON schema, a regular expression, a grammar, or choices."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import parse_json
from dodona.oracle.printable import short
from dodona.runners.errors import InvalidRequestError
from dodona.runners.third_party import first_line

MAX_CHARACTERS = 1 << 18
"""Longest schema, expression or grammar."""

MAX_ENTRIES = 1_000
"""Most entries of one object or list of a schema, and most choices: compiling takes about a tenth of a second
for so many properties, and grows with their square."""

MAX_WORK = 2 * MAX_ENTRIES**2
"""Largest sum, over all objects and lists of a schema, of the squared numbers of their entries."""

MAX_RULES = 500
"""Most rules of a grammar, and most definitions that a schema refers to: of a chain of rules whose last is
not there, llguidance takes three seconds for 500 and eleven for 1,000."""

_TEXT_OF_GRAMMAR = re.compile(r""""(?:[^"\\\n]|\\.)*"|/(?![/*])(?:[^/\\\n]|\\.)+/|//[^\n]*""")
"""Texts, expressions and comments, in which a colon begins no rule."""

KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """The whole output must have this form. Exactly one of `json`, `regex`, `choice`, `grammar` and
    `json_object` is given. Immutable, in vLLM's names.

    Raises InvalidRequestError, naming the parameter. Schemas, expressions
    and grammars are compiled, and refused if they are wrong, when the request is admitted.

    >>> StructuredOutputsParams(choice=["yes", "no"]).choice
    ('yes', 'no')
    """

    json: str | Mapping[str, Any] | None = None
    """A JSON schema. Stored as text."""
    regex: str | None = None
    """A regular expression (syntax of Rust's regex crate) that the whole output matches."""
    choice: Sequence[str] | None = None
    """The texts to choose from. Stored as a tuple."""
    grammar: str | None = None
    """A context-free grammar, in llguidance's Lark or in GBNF."""
    json_object: bool | None = None
    """True: any JSON object."""
    disable_any_whitespace: bool = False
    """Whether JSON is to have no white space between its tokens."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        if isinstance(self.json, Mapping):
            try:
                put(self, "json", json_module.dumps(self.json, ensure_ascii=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidRequestError(
                    f"structured_outputs.json can't be written as JSON: {first_line(error)}"
                ) from error
        if self.json is not None:
            _check_schema_text(self.json)
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidRequestError(
                    f"structured_outputs.{name} must be non-empty text, got {short(value)}"
                )
            if value is not None and len(value) > MAX_CHARACTERS:
                raise InvalidRequestError(_too_long(name, len(value)))
        if self.grammar is not None:
            _check_rules(self.grammar)
        if self.choice is not None:
            put(self, "choice", _choices(self.choice))
        if self.json_object not in (None, True, False):
            raise InvalidRequestError(
                f"structured_outputs.json_object must be true or false, got {short(self.json_object)}"
            )
        put(self, "json_object", self.json_object or None)
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"structured_outputs needs exactly one of {', '.join(KINDS)}; "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.disable_any_whitespace and given[0] not in ("json", "json_object"):
            raise InvalidRequestError(
                "structured_outputs.disable_any_whitespace goes with json and json_object, not with "
                f"{given[0]}"
            )

    @classmethod
    def of(cls, value: StructuredOutputsParams | Mapping[str, Any]) -> StructuredOutputsParams:
        """`value` itself, or made from a mapping of the same names."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise InvalidRequestError(
                "structured_outputs must be StructuredOutputsParams or a mapping of its names, got "
                f"{type(value).__name__}"
            )
        names = [field.name for field in fields(cls)]
        for name in value:
            if name not in names:
                raise InvalidRequestError(f"structured_outputs has no {name!r}; it has {', '.join(names)}")
        return cls(**value)


def _check_schema_text(text: object) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"structured_outputs.json must be a JSON schema as text or mapping, got {type(text).__name__}"
        )
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequestError(_too_long("json", len(text)))
    try:
        schema = parse_json(text, where="structured_outputs.json")
    except ConfigError as error:
        raise InvalidRequestError(f"structured_outputs.json is not JSON: {error}") from error
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequestError(
            f"structured_outputs.json must hold a JSON schema, that is an object; got {short(text)}"
        )
    _check_width(schema)


def _check_rules(grammar: str) -> None:
    rules = _TEXT_OF_GRAMMAR.sub("", grammar).replace("::=", ":").count(":")
    if rules > MAX_RULES:
        raise InvalidRequestError(
            f"structured_outputs.grammar has {rules} rules, or colons outside its texts, more than "
            f"{MAX_RULES}, which takes too long to compile; split it"
        )


def _check_width(schema: Any) -> None:
    todo, work = [schema], 0
    references: set[str] = set()
    while todo:
        value = todo.pop()
        if isinstance(value, (dict, list)):
            work += len(value) ** 2
            if isinstance(value, dict) and isinstance(value.get("$ref"), str):
                references.add(value["$ref"])
            if len(value) > MAX_ENTRIES:
                raise InvalidRequestError(
                    f"structured_outputs.json has an object or a list of {len(value)} entries, more than "
                    f"{MAX_ENTRIES}, which takes too long to compile; split it"
                )
            todo.extend(value.values() if isinstance(value, dict) else value)
    if len(references) > MAX_RULES:
        raise InvalidRequestError(
            f"structured_outputs.json refers to {len(references)} definitions, more than {MAX_RULES}, which "
            "takes too long to compile; split it"
        )
    if work > MAX_WORK:
        raise InvalidRequestError(
            f"structured_outputs.json has large objects or lists, whose squared numbers of entries add up to "
            f"{work}, more than {MAX_WORK}, which takes too long to compile; split it"
        )


def _too_long(name: str, length: int) -> str:
    return f"structured_outputs.{name} has {length} characters, more than {MAX_CHARACTERS}; shorten it"


def _choices(choice: object) -> tuple[str, ...]:
    if isinstance(choice, str) or not isinstance(choice, Sequence) or not choice:
        raise InvalidRequestError(f"structured_outputs.choice must be a list of texts, got {short(choice)}")
    for text in choice:
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(
                f"structured_outputs.choice must hold non-empty texts, got {short(text)}"
            )
    if len(choice) > MAX_ENTRIES or sum(map(len, choice)) > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"structured_outputs.choice has more than {MAX_ENTRIES} texts, or more than {MAX_CHARACTERS} "
            "characters; give fewer"
        )
    return tuple(choice)
