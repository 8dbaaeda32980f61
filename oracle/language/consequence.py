"""One consequence of a book: what the runner that was chosen costs, changes or ignores, without a part in the
choice.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dodona.oracle.language import conditions
from dodona.oracle.language.conditions import Condition, Facts, facts_read
from dodona.oracle.language.rule import Examples, Feature, Model, RuleId, RunnerName, Text, When, shown_text

Severity = Literal["info", "warning", "error"]

SEVERITIES: Final[Sequence[Severity]] = get_args(Severity)
"""From the least severe. info: a cost or another way of working; warning: an option is ignored, or speed or
memory is lost; error: the output is wrong or the server fails later."""


class Consequence(Model):
    """What a chosen runner does that its users may not expect; docs/rules.md describes each key."""

    id: RuleId
    severity: Severity
    runners: Annotated[tuple[RunnerName, ...], Field(min_length=1, strict=False)]
    """Reported where one of these was chosen."""
    when: When
    """Reported where this surely holds: what is not known is not reported."""
    feature: Feature
    """What is affected, in a few words."""
    because: Text
    """What the runner does with it, and why."""
    mend: Text | None = None
    """What its users can do."""
    refs: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    since: Annotated[datetime.date, Field(strict=False)]
    examples: Examples

    @field_validator("runners", "refs")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise PydanticCustomError("distinct", "lists an entry twice", {"hint": "Remove one of them."})
        return value

    @property
    def fires_when(self) -> Condition:
        """The condition under which it is reported, as for a rule."""
        return self.when

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """Facts that `when` compares, in order of appearance."""
        return facts_read(self.when)

    def holds(self, runner: RunnerName | None, facts: Facts) -> bool:
        """Whether it is reported where `runner` was chosen; absent facts count as unknown."""
        return runner in self.runners and conditions.evaluate(self.when, facts) is True

    def show_feature(self, facts: Facts) -> str:
        """What is affected, with the facts it shows."""
        return shown_text(self.feature, facts)
