"""Which systems there are. To add one, implement `System` in a folder of its own and add it to `_SYSTEMS`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from dodona.oracle.language.facts import FactSpec

if TYPE_CHECKING:
    from dodona.oracle.systems.system import System

_SYSTEMS: Final[Mapping[str, tuple[str, str]]] = {
    "dodona": ("dodona.oracle.systems.own.system", "OwnSystem"),
    "vllm": ("dodona.oracle.systems.vllm.system", "VllmSystem"),
}
"""A rule book's `system` → module and class. A module is imported when its system is first asked for."""


def registered_systems() -> tuple[str, ...]:
    """The names of the systems that are registered, Dodona's own first."""
    return tuple(_SYSTEMS)


@functools.lru_cache(maxsize=64)
def system_of(name: str) -> System:
    """The system of a name; for a name that is not registered, a system with the facts and configurations of
    Dodona's own, whose runners are not built here.
    """
    module, cls = _SYSTEMS.get(name, _SYSTEMS["dodona"])
    system: System = getattr(importlib.import_module(module), cls)(name)
    return system


def facts_of(system: object, runners: object = None) -> Mapping[str, FactSpec]:
    """The facts that books of a system may read.

    runners: the book's runners, which are the values of `environment.override`; None: those of the system's
    own books. Both arguments may be as they are written in a malformed book: where `runners` is not a list of
    two or more distinct names, any text is a value, so that the book is refused for its runners and not for
    the rules that name them.
    """
    name = system if isinstance(system, str) else "dodona"
    if runners is None:
        return system_of(name).facts
    names = [r for r in runners if isinstance(r, str)] if isinstance(runners, (list, tuple)) else []
    if len(names) < 2 or len(set(names)) < len(names):
        return _facts_for(name, None)
    return _facts_for(name, tuple(sorted(names)))


@functools.lru_cache(maxsize=64)
def _facts_for(system: str, runners: tuple[str, ...] | None) -> Mapping[str, FactSpec]:
    return system_of(system).facts_for(runners)


def nearest_book(name: str, known: Iterable[str]) -> str:
    """A sentence about the bundled book nearest to one that does not exist; "" where no system knows one.

    The folder of a book's name is the name of its system.
    """
    return system_of(name.rpartition("/")[0]).nearest_book(name, known)
