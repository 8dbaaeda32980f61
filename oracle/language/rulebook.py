"""Rule books: what a system's runners can and can't do, as data that is checked wholly when it is loaded.

docs/rules.md is the reference of the language. A book that loads is sound in form: every fact exists, every
comparison fits its type and domain, ids are unique, `refines` has no cycle, overrides have distinct
precedences.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.resources
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.language.conditions import (
    Condition,
    ConditionError,
    Facts,
    Not,
    check_scalar,
    describe,
    disjunctive_normal_form,
    facts_read,
    nearest,
    parse_condition,
    show_value,
    to_data,
)
from dodona.oracle.language.extends import Resolved, Sibling, folder_sibling, resolve
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue, Unknown
from dodona.oracle.language.yaml_source import TYPE_NAMES, DataPath, Document, parse_yaml, read_yaml
from dodona.oracle.systems.registry import facts_of, nearest_book

RunnerName = str
OWN_SYSTEM: Final = "dodona"
"""`system` of the books that decide for this runtime itself."""

MAX_RULES: Final = 500


def _checked_text(value: str) -> str:
    text = " ".join(value.split())
    if not text or not text.isprintable():
        raise PydanticCustomError("text", "expected a line of text", {"hint": "Write at least one word."})
    return text


RuleId = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Text = Annotated[str, StringConstraints(strict=True, max_length=2000), AfterValidator(_checked_text)]

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _registry(info: ValidationInfo) -> Mapping[str, FactSpec]:
    context: Mapping[str, FactSpec] | None = info.context
    return facts_of(OWN_SYSTEM) if context is None else context


def _parse_when(value: object, info: ValidationInfo) -> Condition:
    if isinstance(value, Condition):
        return value
    try:
        condition = parse_condition(value, _registry(info))
        disjunctive_normal_form(condition)
        disjunctive_normal_form(condition, negate=True)
    except ConditionError as error:
        raise PydanticCustomError(
            "condition",
            "{message}",
            {"message": error.message, "hint": error.hint, "path": error.path, "key": error.key},
        ) from None
    return condition


When = Annotated[Condition, PlainValidator(_parse_when), PlainSerializer(to_data, return_type=dict[str, Any])]


def _parse_feature(value: str, info: ValidationInfo) -> str:
    stray = _PLACEHOLDER.sub("", value)
    if "{" in stray or "}" in stray:
        raise PydanticCustomError(
            "feature", "has a brace that is not part of {{FACT}}", {"hint": "Write `{FACT}`."}
        )
    for name in _PLACEHOLDER.findall(value):
        if name not in _registry(info):
            hint = nearest(name, _registry(info)) or "docs/rules.md lists the facts."
            raise PydanticCustomError(
                "feature", "shows the unknown fact '{name}'", {"name": name, "hint": hint}
            )
    return value


Feature = Annotated[Text, AfterValidator(_parse_feature)]


def _parse_facts(value: object, info: ValidationInfo) -> Mapping[str, FactValue]:
    """Facts of an example or of `assume`: each checked against its fact's type, domain and range; null where
    it may be.
    """
    registry = _registry(info)
    if not isinstance(value, Mapping) or not value:
        raise PydanticCustomError(
            "facts", "expected a mapping of facts to values", {"hint": "Write `{FACT: VALUE, ...}`."}
        )
    parsed: dict[str, FactValue] = {}
    for name, item in value.items():
        try:
            if name not in registry:
                hint = nearest(str(name), registry) or "docs/rules.md lists the facts."
                raise ConditionError(f"unknown fact '{name}'", hint, (str(name),), key=True)
            parsed[name] = check_value(registry[name], item, (name,))
        except ConditionError as error:
            raise PydanticCustomError(
                "facts",
                "{message}",
                {"message": error.message, "hint": error.hint, "path": error.path, "key": error.key},
            ) from None
    return parsed


def check_value(spec: FactSpec, value: object, path: DataPath = ()) -> FactValue:
    """A fact's value given as data (lists for list facts), checked. Raises ConditionError."""
    if value is None:
        if not spec.nullable:
            raise ConditionError(f"'{spec.name}' is never null", "Give a value.", path)
        return None
    if spec.type == "list":
        if not isinstance(value, (list, tuple)):
            raise ConditionError(f"'{spec.name}' is a list", "Write `[...]`.", path)
        return tuple(str(check_scalar(spec, item, (*path, i))) for i, item in enumerate(value))
    return check_scalar(spec, value, path)


def _facts_data(facts: Mapping[str, FactValue]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


ExampleFacts = Annotated[
    Mapping[str, FactValue],
    PlainValidator(_parse_facts),
    PlainSerializer(_facts_data, return_type=dict[str, Any]),
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Examples(_Model):
    """Facts for which a rule fires, and facts for which it does not. Facts left out are unknown."""

    fires: Annotated[tuple[ExampleFacts, ...], Field(min_length=1, strict=False)]
    passes: Annotated[tuple[ExampleFacts, ...], Field(min_length=1, strict=False)]


class Rule(_Model):
    """One rule; docs/rules.md describes each key."""

    id: RuleId
    kind: Literal["override", "require", "veto"]
    runners: Annotated[tuple[RunnerName, ...], Field(strict=False)]
    """override: the one runner it chooses, or none: then the choice itself is refused. require, veto: the
    runners that it rules out when it fires.
    """
    when: When
    """override, veto: the rule fires when this holds. require: it fires when this does not hold."""
    feature: Feature
    because: Text
    refs: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    since: Annotated[datetime.date, Field(strict=False)]
    stage: Literal["choice", "startup", "both"] = "both"
    refines: Annotated[tuple[RuleId, ...], Field(strict=False)] = ()
    precedence: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Overrides only: of those that fire, the lowest decides."""
    unless_vetoed: RunnerName | None = None
    """Overrides only: passes over the override where a require or veto on this runner fires at the choice."""
    log: Feature | None = None
    """Overrides and requires only: what the system itself logs when the rule decides; else nothing."""
    examples: Examples

    @field_validator("runners", "refines", "refs")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise PydanticCustomError("distinct", "lists an entry twice", {"hint": "Remove one of them."})
        return value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Rule:
        if self.kind == "override":
            if len(self.runners) > 1:
                raise _at(
                    "runners",
                    "an override names the one runner that it chooses",
                    "Write `runners: [v1]`, or `runners: []` where the choice is refused.",
                )
            if self.precedence is None:
                raise _at("id", "an override needs a precedence", "Add `precedence: 1` (the lowest decides).")
            if self.stage != "both":
                raise _at("stage", "an override has no stage", "Remove `stage`; overrides decide the choice.")
            if self.refines:
                raise _at("refines", "an override refines nothing", "Remove `refines`.")
        else:
            if self.kind == "veto" and self.log is not None:
                raise _at("log", "a veto has no log of its own", "Write the book's `fallback_log`.")
            if not self.runners:
                raise _at("runners", f"a {self.kind} names no runner", "Write the runners that it rules out.")
            if self.precedence is not None:
                raise _at(
                    "precedence",
                    f"a {self.kind} has no precedence",
                    "Remove it: only overrides have an order.",
                )
            if self.unless_vetoed is not None:
                raise _at("unless_vetoed", f"a {self.kind} can't be passed over", "Remove `unless_vetoed`.")
        return self

    @functools.cached_property
    def fires_when(self) -> Condition:
        """The condition under which the rule fires: `when`, negated for a require."""
        return Not(self.when) if self.kind == "require" else self.when

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """Facts that `when` compares, in order of appearance."""
        return facts_read(self.when)

    def remedy(self, registry: Mapping[str, FactSpec]) -> str:
        """What must hold for the rule not to fire, as text."""
        return describe(self.fires_when, registry, negate=True)

    def show_feature(self, facts: Facts) -> str:
        """The feature's name with the facts it shows."""
        return _shown(self.feature, facts)

    def show_log(self, facts: Facts) -> str | None:
        """What the system logs, with the facts it shows; None where it says nothing."""
        return None if self.log is None else _shown(self.log, facts)


def _shown(text: str, facts: Facts) -> str:
    def shown(match: re.Match[str]) -> str:
        value = facts.get(match[1], UNKNOWN)
        return "unknown" if isinstance(value, Unknown) else show_value(value)

    return _PLACEHOLDER.sub(shown, text)


class EnvironmentVariable(_Model):
    """The variable by which people choose a runner, and what its values mean."""

    variable: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)]
    values: Annotated[Mapping[str, RunnerName], Field(min_length=1)]
    otherwise: RunnerName
    """What any other value means: "error", "unset", or a runner."""
    whole_numbers: bool = False
    """The value is read as a whole number, as Python's int() does; anything else is an error."""

    def parse(self, value: str | None) -> RunnerName | None:
        """The runner that the variable's value asks for; None where it is unset. Raises ConfigError."""
        if value is None:
            return None
        if self.whole_numbers:
            try:
                value = str(int(value))
            except ValueError:
                raise ConfigError(
                    f"environment variable {self.variable}: expected a whole number, got {value!r}"
                ) from None
        if value in self.values:
            return self.values[value]
        if self.otherwise == "error":
            meanings = ", ".join(f'"{text}" for runner {runner}' for text, runner in self.values.items())
            raise ConfigError(
                f"{self.variable}={value!r} means nothing: unset it to let the rules decide, or set it to "
                f"{meanings}"
            )
        return None if self.otherwise == "unset" else self.otherwise


class DeclaredException(_Model):
    """A property that a book breaks on purpose. `dodona rules check` confirms that it does, and that the
    witness shows it.
    """

    property: Literal["monotone", "user-decides", "preferred-by-default", "only-reason"]
    """docs/analysis.md says what each of them means."""
    rule: RuleId | None = None
    """The rule that can't be the only reason; of "only-reason" only."""
    because: Text
    witness: ExampleFacts
    """Facts that show it; those left out are as in a plain configuration."""

    @model_validator(mode="after")
    def _names_a_rule(self) -> DeclaredException:
        if (self.rule is None) is (self.property == "only-reason"):
            message = "needs a rule" if self.rule is None else f"{self.property} is said of the whole book"
            raise _at("property", message, "`rule: ID` goes with `property: only-reason`, and with no other.")
        return self


class RuleBook(_Model):
    """A whole book; docs/rules.md describes each key."""

    rulebook: Annotated[
        str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9._/-]*$", max_length=64)
    ]
    description: Text
    system: Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    """Whose runners the book describes: "dodona" for this runtime's own."""
    runners: Annotated[tuple[RunnerName, ...], Field(min_length=2, strict=False)]
    """In order of preference; the last one is the fallback."""
    environment: EnvironmentVariable | None = None
    forced_refusal: Literal["choice", "startup"] = "choice"
    """What a require or veto on the runner that an override chose does. "choice": the choice itself is
    refused, and there is no runner. "startup": the runner stands, and doesn't start.
    """
    fallback_log: Text | None = None
    """What the system itself logs when vetoes make it fall back; `{features}` stands for their features."""
    assume: ExampleFacts | None = None
    """Values that stand in for facts that aren't known; the verdict lists those used."""
    exceptions: Annotated[tuple[DeclaredException, ...], Field(strict=False)] = ()
    """Properties that the book breaks on purpose."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=MAX_RULES, strict=False)]

    @property
    def facts(self) -> Mapping[str, FactSpec]:
        """The registry of the facts that the book may read."""
        return facts_of(self.system, self.runners)

    @model_validator(mode="after")
    def _consistent(self) -> RuleBook:
        if len(set(self.runners)) != len(self.runners):
            raise _at("runners", "lists a runner twice", "Remove one of them.")
        index = {rule.id: i for i, rule in enumerate(self.rules)}
        precedences: dict[int | None, str] = {}
        for i, rule in enumerate(self.rules):
            if index[rule.id] != i:
                raise _at(
                    ("rules", index[rule.id], "id"),
                    f"the id '{rule.id}' is used twice",
                    "Ids are unique: rename one.",
                )
            for j, runner in enumerate(rule.runners):
                if runner not in self.runners:
                    raise _at(
                        ("rules", i, "runners", j),
                        f"the book has no runner '{runner}'",
                        f"It has {', '.join(self.runners)}.",
                    )
            if rule.kind == "override":
                if rule.precedence in precedences:
                    raise _at(
                        ("rules", i, "precedence"),
                        f"precedence {rule.precedence} is taken by '{precedences[rule.precedence]}'",
                        "Give each override its own.",
                    )
                precedences[rule.precedence] = rule.id
            for j, target in enumerate(rule.refines):
                where = ("rules", i, "refines", j)
                if target not in index:
                    hint = nearest(target, index) or "Name the id of a broader rule of this book."
                    raise _at(where, f"refines the unknown rule '{target}'", hint)
                broader = self.rules[index[target]]
                if broader.kind == "override" or not set(rule.runners) <= set(broader.runners):
                    raise _at(
                        where,
                        f"'{target}' does not speak of the same runners",
                        "Name a rule that rules out the same ones.",
                    )
        for i, exception in enumerate(self.exceptions):
            if exception.rule is not None and exception.rule not in index:
                hint = nearest(exception.rule, index) or "Name the id of a rule of this book."
                raise _at(("exceptions", i, "rule"), f"there is no rule '{exception.rule}'", hint)
        for i, rule in enumerate(self.rules):
            if rule.id in self.refined_by(rule.id):
                raise _at(
                    ("rules", i, "refines"),
                    f"'{rule.id}' refines itself in a circle",
                    "A special case refines a broader rule, not back.",
                )
        return self

    @functools.cached_property
    def by_id(self) -> Mapping[str, Rule]:
        """Rules by id."""
        return {rule.id: rule for rule in self.rules}

    def refined_by(self, rule: str) -> frozenset[str]:
        """Ids of the broader rules that a rule refines, directly or through others."""
        by_id = {r.id: r for r in self.rules}
        found: set[str] = set()
        todo = list(by_id[rule].refines)
        while todo:
            target = todo.pop()
            if target not in found and target in by_id:
                found.add(target)
                todo.extend(by_id[target].refines)
        return frozenset(found)

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """Facts that any rule compares, sorted."""
        return tuple(sorted({name for rule in self.rules for name in rule.reads}))

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the book's content: comments, layout and the order of keys don't change it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _at(path: str | DataPath, message: str, hint: str) -> PydanticCustomError:
    steps = (path,) if isinstance(path, str) else path
    return PydanticCustomError(
        "rule", "{message}", {"message": message, "hint": hint, "path": steps, "key": False}
    )


# --- loading
# ---------------------------------------------------------------------------------------------------------


def bundled_rulebooks() -> tuple[str, ...]:
    """Names of the books that come with Dodona, for instance "dodona" or "vllm/0.27.0"."""
    root = importlib.resources.files("dodona") / "rules"
    with importlib.resources.as_file(root) as folder:
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return tuple(path.with_suffix("").as_posix() for path in paths)


@functools.lru_cache(maxsize=64)
def _bundled_document(name: str) -> Document | None:
    source = importlib.resources.files("dodona") / "rules"
    for part in f"{name}.yaml".split("/"):
        source = source / part
    return parse_yaml(source.read_bytes(), file=f"rules/{name}.yaml") if source.is_file() else None


@functools.lru_cache(maxsize=64)
def bundled_rulebook(name: str) -> RuleBook:
    """A book that comes with Dodona, read once per process. Raises ConfigError for an unknown name."""
    return validate_rulebook(resolve_rulebook(name))


def load_rulebook(source: str | os.PathLike[str] | RuleBook) -> RuleBook:
    """A book by name ("dodona"), by path (ending .yaml or .yml), or as it is.

    Raises ConfigError for an unknown name, RuleFileError (file, line, column, hint) for a malformed book.
    """
    if isinstance(source, RuleBook):
        return source
    if isinstance(source, str) and not source.endswith((".yaml", ".yml")):
        return bundled_rulebook(source)
    return validate_rulebook(resolve_rulebook(source))


def resolve_rulebook(source: str | os.PathLike[str]) -> Resolved:
    """The text of a book by name or path, with the place of each value, put together with what it extends.

    Raises ConfigError for an unknown name, RuleFileError for text that can't be read.
    """
    if not isinstance(source, str) or source.endswith((".yaml", ".yml")):
        path = Path(source)
        return resolve(read_yaml(path), folder_sibling(path))
    known = bundled_rulebooks()
    if source not in known:
        hint = nearest_book(source, known) or nearest(source, known) or f"There are: {', '.join(known)}."
        raise ConfigError(f"no rule book is named '{source}'. {hint} A path to a book ends with .yaml.")
    document = _bundled_document(source)
    assert document is not None
    folder = source[: source.rfind("/") + 1]
    return resolve(document, lambda sibling: _bundled_document(folder + sibling))


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


def validate_rulebook(resolved: Resolved, facts: Mapping[str, FactSpec] | None = None) -> RuleBook:
    """The book of a text that was put together. Raises RuleFileError at the culprit's place."""
    document = resolved.document
    if not isinstance(document.data, dict):
        document.fail((), "a rule book is a mapping", "Begin with `rulebook: NAME`.")
    try:
        data = document.data
        registry = facts_of(data.get("system"), data.get("runners", ())) if facts is None else facts
        return RuleBook.model_validate(data, context=registry)
    except ValidationError as error:
        if resolved.parent is not None:
            # what is inherited is reported in the file that it comes from
            validate_rulebook(resolved.parent, facts)
        found = error.errors(include_url=False)
        # what is missing or too short often follows from something misspelt, which says more
        causes = [item for item in found if item["type"] not in ("missing", "too_short")] or found
        problems = [_explained(document, item) for item in causes]
        raise min(problems, key=lambda problem: (problem.line, problem.column)) from None


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
        if path[:1] == ("rules",) and len(path) >= 3:
            model = Examples if "examples" in path[2:-1] else Rule
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
