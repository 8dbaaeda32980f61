"""The process's durable-rules host, fenced in: every way in which it is known to go wrong is caught here."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dodona.oracle.decide.durable.encoding import Field
from dodona.oracle.errors import DodonaError

SENTINEL: Final = "sentinel"
"""The rule of every ruleset that always fires: without a firing, the engine could not delete its state."""
RESERVED: Final = ("sid", "id", "kind")
"""Names of fields that the engine has a use for."""

Definition = dict[str, dict[str, Any]]
"""Rules of one ruleset in the engine's JSON form, without `run`."""


class EngineFault(DodonaError):
    """The rule engine did something that no rule book explains. What it returned is not used."""


class EngineUnavailable(DodonaError):
    """The rule engine can't be imported, or failed a book's trial; the reference evaluator serves instead."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One durable ruleset: its clauses by durable rule name → rule id, and the fields that it reads."""

    name: str
    clauses: Mapping[str, str]
    fields: tuple[str, ...]
    definition: Definition


class Engine:
    """The process's one durable-rules host. All calls hold its lock: the engine's own threads are never
    started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._host: Any = None
        self._unavailable: str | None = None
        self._registered: set[str] = set()
        self._fired: list[str] = []
        self._sids = itertools.count()

    def register(self, rulesets: Sequence[Ruleset]) -> None:
        """Compile rulesets, each once. Raises EngineUnavailable where durable-rules can't be imported,
        EngineFault.
        """
        with self._lock:
            self._register(rulesets)

    def fire(self, ruleset: Ruleset, fields: Mapping[str, Field]) -> list[str]:
        """Names of the durable rules that fire for one fact, without the sentinel. Raises EngineFault."""
        with self._lock:
            self._register([ruleset])
            sid = f"s{next(self._sids)}"
            fired: list[str] = []
            self._fired = fired
            try:
                state = self._host.assert_fact(ruleset.name, {"sid": sid, "kind": "cfg", **fields})
                if state is None or "exception" in state:
                    raise EngineFault(f"no state: {(state or {}).get('exception')}")
                if fired.count(SENTINEL) != 1 or len(set(fired)) != len(fired):
                    raise EngineFault(f"wrong number of firings: {fired}")
            except BaseException as error:
                # whatever state is left in this host, the next evaluation gets another one
                self._host = None
                self._registered.clear()
                if isinstance(error, Exception):
                    raise EngineFault(f"the rule engine failed on {ruleset.name}: {error}") from error
                raise
            finally:
                # without a firing there is no state, and deleting it would free an uninitialised pointer
                if self._host is not None:
                    self._host.delete_state(ruleset.name, sid)
        return [name for name in fired if name != SENTINEL]

    def _register(self, rulesets: Sequence[Ruleset]) -> None:
        host = self._make_host()
        for ruleset in rulesets:
            if ruleset.name in self._registered:
                continue
            definition = {
                name: {**json.loads(json.dumps(rule)), "pri": i + 1, "run": self._action(name)}
                for i, (name, rule) in enumerate(ruleset.definition.items())
            }
            try:
                host.register_rulesets({ruleset.name: definition})
            except Exception as error:
                self._host = None
                self._registered.clear()
                raise EngineFault(f"the rule engine refused to compile {ruleset.name}: {error}") from error
            self._registered.add(ruleset.name)

    def _action(self, name: str) -> Callable[[Any], None]:
        # one positional parameter exactly: the engine inspects the signature
        def run(c: Any) -> None:
            self._fired.append(name)

        return run

    def _make_host(self) -> Any:
        if self._unavailable is not None:
            raise EngineUnavailable(self._unavailable)
        if self._host is None:
            try:
                self._host = _import_host()()
            except Exception as error:
                self._unavailable = f"durable-rules can't be imported: {error}"
                raise EngineUnavailable(self._unavailable) from error
        return self._host


def _import_host() -> type[Any]:
    """durable-rules' Host without its two dispatch threads, which race with assertions and lose firings."""
    from durable.engine import Host

    class QuietHost(Host):  # type: ignore[misc]
        def _run(self) -> None:
            pass

    return QuietHost
