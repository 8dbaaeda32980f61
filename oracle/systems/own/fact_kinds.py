"""Kinds of facts about this runtime: what they are derived from, and makers of those that are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactType, FactValue
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.fact import Fact


class Inputs(NamedTuple):
    """What facts are derived from. `model` is None where no config.json is at hand."""

    config: EngineConfig
    model: ModelInfo | None
    environment: Environment


@dataclass(frozen=True)
class OwnFact(Fact[Inputs]):
    """A fact of this runtime, and how it is derived."""


def known(value: bool | None) -> FactValue:
    """The value of a fact; None: it isn't known."""
    return UNKNOWN if value is None else value


def of_model(read: Callable[[ModelInfo], Any]) -> Callable[[Inputs], FactValue]:
    """A derivation from the model alone; UNKNOWN without one."""

    def derive(inputs: Inputs) -> FactValue:
        return UNKNOWN if inputs.model is None else read(inputs.model)

    return derive


def of_config_json(
    name: str, type: FactType, doc: str, read: Callable[[ModelInfo], Any] | None = None, **more: Any
) -> OwnFact:
    """A fact of config.json, by default the attribute of ModelInfo that has its name."""
    return OwnFact(
        f"model_config.{name}", type, doc, "model", derive=of_model(read or attrgetter(name)), **more
    )


def model_size(name: str, doc: str) -> OwnFact:
    """A size that config.json may not tell; null where the model has no attention and so no such thing."""

    def read(model: ModelInfo) -> FactValue:
        value: int | None = getattr(model, name)
        if value is None:
            return None if model.is_attention_free else UNKNOWN
        return min(value, MAX_INT)

    return of_config_json(name, "int", doc, read, nullable=True, minimum=0)


def of_field(path: str, type: FactType, doc: str, **more: Any) -> OwnFact:
    """A fact that is one field of the configuration; null where its section is not configured."""
    section, field = path.split(".")

    def derive(inputs: Inputs) -> FactValue:
        found = getattr(inputs.config, section)
        value: FactValue = None if found is None else getattr(found, field)
        return min(value, MAX_INT) if type == "int" and isinstance(value, int) else value

    if type == "int":
        more.setdefault("minimum", 1)
    return OwnFact(path, type, doc, "config", derive=derive, reads=(path,), **more)


def of_section(name: str, doc: str) -> OwnFact:
    """Whether an optional section is configured: true, or null. An empty section is configured."""

    def derive(inputs: Inputs) -> FactValue:
        return None if getattr(inputs.config, name) is None else True

    return OwnFact(name, "bool", doc, "config", derive=derive, nullable=True, section=True)


def of_environment(name: str, type: FactType, doc: str, **more: Any) -> OwnFact:
    """A fact that is one field of the machine."""

    def derive(inputs: Inputs) -> FactValue:
        value: FactValue = getattr(inputs.environment, name)
        return value

    return OwnFact(f"environment.{name}", type, doc, "environment", derive=derive, **more)


def of_package(name: str) -> OwnFact:
    """The installed version of a package."""
    return OwnFact(
        f"environment.{name}",
        "str",
        f"Installed version of {name}; null where it isn't installed.",
        "environment",
        derive=lambda inputs: inputs.environment.version(name),
        nullable=True,
    )
