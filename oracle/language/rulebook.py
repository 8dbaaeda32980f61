"""Rule books: what a system's runners can and can't do, as data that is checked wholly when it is loaded.

docs/rules.md is the reference of the language. A book that loads is sound in form: every fact exists, every
comparison fits its type and domain, every runner is one of the book's, ids are unique, `refines` has no
cycle, overrides have distinct precedences.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PrivateAttr, StringConstraints, model_validator

from dodona.oracle.errors import ConfigError, nearest
from dodona.oracle.language.consequence import Consequence
from dodona.oracle.language.facts import FactSpec
from dodona.oracle.language.rule import ExampleFacts, Model, Rule, RuleId, RunnerName, Text, rule_error
from dodona.oracle.language.yaml_source import DataPath

OWN_SYSTEM: Final = "dodona"
"""`system` of the books that decide for this runtime itself."""

MAX_RULES: Final = 300

_MEANINGS: Final = ("error", "unset")
"""What `environment.otherwise` may say beside the name of a runner."""


class EnvironmentVariable(Model):
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


class DeclaredException(Model):
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
            raise rule_error(
                "property", message, "`rule: ID` goes with `property: only-reason`, and with no other."
            )
        return self


class RuleBook(Model):
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
    consequences: Annotated[tuple[Consequence, ...], Field(max_length=MAX_RULES, strict=False)] = ()
    """What the chosen runner costs, changes or ignores; they have no part in the choice."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=MAX_RULES, strict=False)]

    _facts: Mapping[str, FactSpec] = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Keep the registry of facts that the book was checked against."""
        self._facts = context

    @property
    def facts(self) -> Mapping[str, FactSpec]:
        """The registry of the facts that the book may read: the context that it was validated with."""
        return self._facts

    @model_validator(mode="after")
    def _consistent(self) -> RuleBook:
        self._check_runners()
        self._check_rules()
        self._check_refines()
        self._check_exceptions()
        return self

    def _check_runners(self) -> None:
        """Every runner that the book names is one of its own."""
        if len(set(self.runners)) != len(self.runners):
            raise rule_error("runners", "lists a runner twice", "Remove one of them.")
        for i, runner in enumerate(self.runners):
            if runner in _MEANINGS:
                raise rule_error(
                    ("runners", i),
                    f"'{runner}' can't be a runner's name: `environment.otherwise` gives it another meaning",
                    "Choose another name.",
                )
        if self.environment is not None:
            for value, runner in self.environment.values.items():
                self._check_runner(runner, ("environment", "values", value))
            if self.environment.otherwise not in _MEANINGS:
                self._check_runner(self.environment.otherwise, ("environment", "otherwise"), *_MEANINGS)
        for i, rule in enumerate(self.rules):
            for j, runner in enumerate(rule.runners):
                self._check_runner(runner, ("rules", i, "runners", j))
            if rule.unless_vetoed is not None:
                self._check_runner(rule.unless_vetoed, ("rules", i, "unless_vetoed"))
        for i, consequence in enumerate(self.consequences):
            for j, runner in enumerate(consequence.runners):
                self._check_runner(runner, ("consequences", i, "runners", j))

    def _check_runner(self, name: str, path: DataPath, *others: str) -> None:
        if name not in self.runners:
            known = ", ".join(f"'{other}'" for other in (*self.runners, *others))
            raise rule_error(path, f"the book has no runner '{name}'", f"Write one of {known}.")

    def _check_rules(self) -> None:
        """Ids and precedences are unique."""
        index = {rule.id: i for i, rule in enumerate(self.rules)}
        precedences: dict[int | None, str] = {}
        for i, rule in enumerate(self.rules):
            if index[rule.id] != i:
                raise rule_error(
                    ("rules", index[rule.id], "id"),
                    f"the id '{rule.id}' is used twice",
                    "Ids are unique: rename one.",
                )
            if rule.kind == "override":
                if rule.precedence in precedences:
                    raise rule_error(
                        ("rules", i, "precedence"),
                        f"precedence {rule.precedence} is taken by '{precedences[rule.precedence]}'",
                        "Give each override its own.",
                    )
                precedences[rule.precedence] = rule.id
        taken = set(index)
        for i, consequence in enumerate(self.consequences):
            if consequence.id in taken:
                raise rule_error(
                    ("consequences", i, "id"),
                    f"the id '{consequence.id}' is used twice",
                    "Ids of rules and consequences are unique: rename one.",
                )
            taken.add(consequence.id)

    def _check_refines(self) -> None:
        """A rule refines rules of the book that speak of the same runners, and never itself."""
        index = {rule.id: i for i, rule in enumerate(self.rules)}
        for i, rule in enumerate(self.rules):
            for j, target in enumerate(rule.refines):
                where = ("rules", i, "refines", j)
                if target not in index:
                    hint = nearest(target, index) or "Name the id of a broader rule of this book."
                    raise rule_error(where, f"refines the unknown rule '{target}'", hint)
                broader = self.rules[index[target]]
                if broader.kind == "override" or not set(rule.runners) <= set(broader.runners):
                    raise rule_error(
                        where,
                        f"'{target}' does not speak of the same runners",
                        "Name a rule that rules out the same ones.",
                    )
        for i, rule in enumerate(self.rules):
            if rule.id in self.refined_by(rule.id):
                raise rule_error(
                    ("rules", i, "refines"),
                    f"'{rule.id}' refines itself in a circle",
                    "A special case refines a broader rule, not back.",
                )

    def _check_exceptions(self) -> None:
        ids = {rule.id for rule in self.rules}
        for i, exception in enumerate(self.exceptions):
            if exception.rule is not None and exception.rule not in ids:
                hint = nearest(exception.rule, ids) or "Name the id of a rule of this book."
                raise rule_error(("exceptions", i, "rule"), f"there is no rule '{exception.rule}'", hint)

    @property
    def entries(self) -> tuple[Rule | Consequence, ...]:
        """Rules, then consequences: all that has a condition and examples."""
        return (*self.rules, *self.consequences)

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
        """Facts that any rule compares, sorted; not those of consequences."""
        return tuple(sorted({name for rule in self.rules for name in rule.reads}))

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the book's content: comments, layout and the order of keys don't change it."""
        data = self.model_dump(mode="json")
        if not self.consequences:
            del data["consequences"]  # a book without them is what it was before there were any
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
