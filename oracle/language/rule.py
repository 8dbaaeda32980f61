"""One rule of a book: its parts as pydantic models, checked against the registry of facts.

Validation needs the registry as its context: `Rule.model_validate(data, context=FACTS)`.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dodona.oracle.errors import nearest
from dodona.oracle.language.condition_parser import check_value, parse_condition
from dodona.oracle.language.condition_text import describe, to_data
from dodona.oracle.language.conditions import Condition, ConditionError, Facts, Not, facts_read
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue, Unknown, show_value
from dodona.oracle.language.normal_forms import disjunctive_normal_form
from dodona.oracle.language.yaml_source import DataPath


def _checked_text(value: str) -> str:
    text = " ".join(value.split())
    if not text or not text.isprintable():
        raise PydanticCustomError("text", "expected a line of text", {"hint": "Write at least one word."})
    return text


RunnerName = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=64)
]
"""The name of a runner. Which names there are is the book's data (`RuleBook.runners`)."""

RuleId = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Text = Annotated[str, StringConstraints(strict=True, max_length=2000), AfterValidator(_checked_text)]

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _registry(info: ValidationInfo) -> Mapping[str, FactSpec]:
    context: Mapping[str, FactSpec] | None = info.context
    if context is None:
        raise TypeError(
            "a rule is checked against a registry of facts: pass it as the context of the validation, for "
            "instance RuleBook.model_validate(data, context=FACTS)"
        )
    return context


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


def _facts_data(facts: Mapping[str, FactValue]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


ExampleFacts = Annotated[
    Mapping[str, FactValue],
    PlainValidator(_parse_facts),
    PlainSerializer(_facts_data, return_type=dict[str, Any]),
]


class Model(BaseModel):
    """What all parts of a book share: strict, frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Examples(Model):
    """Facts for which a rule fires, and facts for which it does not. Facts left out are unknown."""

    fires: Annotated[tuple[ExampleFacts, ...], Field(min_length=1, strict=False)]
    passes: Annotated[tuple[ExampleFacts, ...], Field(min_length=1, strict=False)]


class Rule(Model):
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
                raise rule_error(
                    "runners",
                    "an override names the one runner that it chooses",
                    f"Write `runners: [{self.runners[0]}]`, or `runners: []` where the choice is refused.",
                )
            if self.precedence is None:
                raise rule_error(
                    "id", "an override needs a precedence", "Add `precedence: 1` (the lowest decides)."
                )
            if self.stage != "both":
                raise rule_error(
                    "stage", "an override has no stage", "Remove `stage`; overrides decide the choice."
                )
            if self.refines:
                raise rule_error("refines", "an override refines nothing", "Remove `refines`.")
        else:
            if self.kind == "veto" and self.log is not None:
                raise rule_error("log", "a veto has no log of its own", "Write the book's `fallback_log`.")
            if not self.runners:
                raise rule_error(
                    "runners", f"a {self.kind} names no runner", "Write the runners that it rules out."
                )
            if self.precedence is not None:
                raise rule_error(
                    "precedence",
                    f"a {self.kind} has no precedence",
                    "Remove it: only overrides have an order.",
                )
            if self.unless_vetoed is not None:
                raise rule_error(
                    "unless_vetoed", f"a {self.kind} can't be passed over", "Remove `unless_vetoed`."
                )
        return self

    @functools.cached_property
    def fires_when(self) -> Condition:
        """The condition under which the rule fires: `when`, negated for a require."""
        return Not(self.when) if self.kind == "require" else self.when

    @property
    def fires_if_unknown(self) -> bool:
        """Whether the rule fires where unknown facts leave open whether it does.

        Requires and vetoes do: an unknown fact counts against the runner. Overrides do not: an unknown fact
        decides nothing.
        """
        return self.kind != "override"

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """Facts that `when` compares, in order of appearance."""
        return facts_read(self.when)

    def remedy(self, registry: Mapping[str, FactSpec]) -> str:
        """What must hold for the rule not to fire, as text."""
        return describe(self.fires_when, registry, negate=True)

    def show_feature(self, facts: Facts) -> str:
        """The feature's name with the facts it shows."""
        return shown_text(self.feature, facts)

    def show_log(self, facts: Facts) -> str | None:
        """What the system logs, with the facts it shows; None where it says nothing."""
        return None if self.log is None else shown_text(self.log, facts)


def shown_text(text: str, facts: Facts) -> str:
    """A text of a book with the values of the facts that it shows."""

    def shown(match: re.Match[str]) -> str:
        value = facts.get(match[1], UNKNOWN)
        return "unknown" if isinstance(value, Unknown) else show_value(value)

    return _PLACEHOLDER.sub(shown, text)


def rule_error(path: str | DataPath, message: str, hint: str) -> PydanticCustomError:
    """A validation error about what `path` leads to inside the model."""
    steps = (path,) if isinstance(path, str) else path
    return PydanticCustomError(
        "rule", "{message}", {"message": message, "hint": hint, "path": steps, "key": False}
    )
