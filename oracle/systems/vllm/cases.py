"""Recorded cases of vLLM: what a release's own code answered for a configuration of final field values.

docs/vllm-books.md describes the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import PLATFORMS, Environment
from dodona.oracle.systems.system import RecordedAnswer
from dodona.oracle.systems.vllm.facts import derive_facts


def case_facts(book: RuleBook, case: Mapping[str, Any]) -> dict[str, FactValue]:
    """The facts of a case. Raises ConfigError that names the field."""
    config = _field(case, "config", dict)
    env = _field(case, "env", str, None)
    platform = _field(case, "platform", str)
    if platform not in PLATFORMS:
        raise ConfigError(f"platform: expected one of {', '.join(PLATFORMS)}, got {platform!r}")
    machine = Environment(
        has_triton=_field(case, "has_triton", bool),
        platform=platform,
        override=None if book.environment is None else book.environment.parse(env),
        logitsproc_plugins=_field(case, "logitsproc_plugins", bool),
    )
    return derive_facts(config, machine, book.assume)


def recorded_answer(case: Mapping[str, Any]) -> RecordedAnswer:
    """What the release answered. Raises ConfigError that names the field."""
    expect = _field(case, "expect", dict)
    use_v2 = _field(expect, "use_v2", bool, None)
    startup = expect.get("startup")
    told = [
        item["message"]
        for item in (expect.get("error"), startup)
        if isinstance(item, dict) and "message" in item
    ]
    told += [item for item in expect.get("warnings") or () if isinstance(item, str)]
    why = tuple(map(str, told))
    if use_v2 is None:
        return RecordedAnswer(None, True, {}, why)
    unsupported = {runner: _features(expect, f"unsupported_{runner}") for runner in _RUNNERS.values()}
    return RecordedAnswer(_RUNNERS[use_v2], startup == "ok", unsupported, why)


_RUNNERS: Final[Mapping[bool, str]] = {False: "v1", True: "v2"}
"""Names of vLLM's runners, by whether it is V2."""


def _features(expect: Mapping[str, Any], name: str) -> frozenset[str] | None:
    found = expect.get(name)
    if found is not None and not (isinstance(found, list) and all(isinstance(item, str) for item in found)):
        raise ConfigError(f"expect.{name}: expected a list of texts or null, got {found!r}")
    return None if found is None else frozenset(found)


def _field(case: Mapping[str, Any], name: str, *types: type | None) -> Any:
    """A field of one of the types (None: null, or absent). Raises ConfigError."""
    value = case.get(name)
    if (None in types and value is None) or type(value) in types:
        return value
    raise ConfigError(f"{name}: expected {_TYPES[types[0]]}, got {value!r}")


_TYPES: Final[Mapping[type | None, str]] = {dict: "an object", str: "a text", bool: "true or false"}
