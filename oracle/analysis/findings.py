"""What `dodona rules check` finds, and the forms in which it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dodona.oracle.analysis.source import Place
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.facts import FactValue, Unknown, show_value

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One fault of a rule book."""

    code: str
    """What kind of fault; docs/analysis.md lists them."""
    place: Place
    message: str
    hint: str
    rule: str | None = None
    witness: Mapping[str, FactValue] | None = None
    """Facts that show the fault, as far as they differ from a plain configuration; None where no facts do."""
    level: Level = "error"

    def __str__(self) -> str:
        lines = [f"{self.place}: {self.level}[{self.code}]: {self._said}"]
        if self.witness is not None:
            lines.append(f"    witness: {show_facts(self.witness)}")
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        return "\n".join(lines)

    @property
    def _said(self) -> str:
        return self.message if self.rule is None else f"rule {self.rule}: {self.message}"

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "code": self.code,
            "level": self.level,
            "file": self.place.file,
            "line": self.place.line,
            "column": self.place.column,
            "rule": self.rule,
            "message": self.message,
            "witness": None if self.witness is None else facts_data(self.witness),
            "hint": self.hint,
        }

    def github(self) -> str:
        """As a workflow command, which GitHub shows beside the line."""
        place = f"file={_property(self.place.file)},line={self.place.line},col={self.place.column}"
        text = self._said
        if self.witness is not None:
            text += f"\nwitness: {show_facts(self.witness)}"
        if self.hint:
            text += f"\nhint: {self.hint}"
        return f"::{self.level} {place},title={_property(f'dodona: {self.code}')}::{_message(text)}"


def load_finding(error: RuleFileError) -> Finding:
    """A book that doesn't load, as a finding."""
    return Finding("load", Place(error.file, error.line, error.column), error.message, error.hint)


def show_facts(facts: Mapping[str, FactValue]) -> str:
    """One line: `fact: value, …`; a plain configuration where there are none."""
    return ", ".join(f"{name}: {_show(value)}" for name, value in facts.items()) or "a plain configuration"


def _show(value: FactValue) -> str:
    if isinstance(value, Unknown):
        return "unknown"
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "null" if value is None else show_value(value)


def facts_data(facts: Mapping[str, FactValue]) -> dict[str, Any]:
    """Facts as JSON data; one that is unknown is {"unknown": true}."""
    return {
        name: {"unknown": True}
        if isinstance(value, Unknown)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in facts.items()
    }


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
