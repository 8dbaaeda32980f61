"""Facts as the rule language knows them: a name, a type, a domain, and values.

A fact has one dotted name (vLLM's) and one value: true/false, a whole number, a text, a list of texts, null
(unset, or there is no such thing here), or `UNKNOWN` (it can't be known from what was given). There are no
fractions.
"""

from __future__ import annotations

import enum
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal


class Unknown(enum.Enum):
    """The type of `UNKNOWN`."""

    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown.UNKNOWN
"""The value of a fact that can't be known from what was given."""

FactValue = bool | int | str | tuple[str, ...] | None | Unknown
FactType = Literal["bool", "int", "str", "list"]
Source = Literal["config", "model", "environment"]

MAX_INT = 2**53
"""Largest absolute value of a whole-number fact; larger ones are cut off."""


@dataclass(frozen=True)
class FactSpec:
    """One fact: its name, type and domain. How it is derived belongs to the system whose fact it is."""

    name: str
    type: FactType
    doc: str = ""
    source: Source = "config"
    _: KW_ONLY
    domain: tuple[str, ...] | None = None
    """All values (of a list: all entries) that a text can have; None means that any text may occur."""
    nullable: bool = False
    minimum: int | None = None
    maximum: int | None = None
    reads: tuple[str, ...] = ()
    """Fields of the configuration that it is derived from."""
    section: bool = False
    """The fact is true where something optional is configured, else null, and never false."""


def show_value(value: object) -> str:
    """A fact's value as people write it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
