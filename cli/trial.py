"""What `dodona select` finds when it loads a model without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dodona.cli.common import message_of
from dodona.oracle.errors import DodonaError
from dodona.oracle.systems.registry import system_of

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict


@dataclass(frozen=True, slots=True)
class TrialLoad:
    """What became of it."""

    error: str | None = None
    """What a start would say; None where nothing was found."""
    untried: str | None = None
    """Why nothing was loaded; None where it was."""

    def to_mapping(self) -> dict[str, str | None]:
        """For JSON."""
        return {"error": self.error, "untried": self.untried}

    def __str__(self) -> str:
        if self.untried is not None:
            return f"The load was not tried: {self.untried}."
        return "The model was loaded without its weights; nothing speaks against a start."


def trial_load(verdict: Verdict) -> TrialLoad | None:
    """Try the load of a verdict that permits it; None where the book is of another engine,
    or names a runner that there is none of.

    Raises no error of the model's files: they are in the result.
    """
    from dodona.runners.build import RUNNERS

    if not system_of(verdict.rulebook.system).builds_runners or verdict.runner not in RUNNERS:
        return None
    from dodona.runners.trial_load import try_load, why_untried

    try:
        untried = why_untried(verdict)
        if untried is None:
            untried = try_load(verdict)
        return TrialLoad(untried=untried)
    except DodonaError as error:
        return TrialLoad(error=message_of(error))
