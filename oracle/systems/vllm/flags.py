"""The flags of `vllm serve` in each release, as vLLM's parser takes them: aliases, abbreviations, negations,
and how many values follow.

The table is flags.json, which ``python -m tests.support.vllm_flags`` draws from the source of vLLM's wheels.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from dodona.oracle.errors import ConfigError
from dodona.oracle.systems.vllm.releases import nearest_release, release_number

Values = Literal["switch", "optional", "one", "many"]
"""How many values follow a flag: none, one or none, one, one or more."""

PAIRED_SINCE: Final = (0, 33, 0)
"""First release in which `--disable-x` negates `--enable-x`, and the other way round."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option string and what it stands for."""

    name: str
    """The argument's flat name, such as `tensor_parallel_size`."""
    values: Values
    negates: bool = False
    """`--no-…`: switches it off."""


@dataclass(frozen=True)
class FlagTable:
    """The flags of one release."""

    release: str
    options: Mapping[str, Flag]
    """Every option string, `--no-…` included."""
    names: Mapping[str, Flag]
    """The same by flat names, without negations."""

    def find(self, option: str) -> Flag | None:
        """The flag of an option string as it is written, which may be abbreviated; None where there is none.

        Raises ConfigError for an abbreviation of several flags.
        """
        exact = self.options.get(option)
        if exact is not None or not option.startswith("--") or len(option) < 3:
            return exact
        option = option.replace("_", "-")
        return self.options.get(option) or _abbreviated(self.release, option)


@functools.lru_cache(maxsize=1024)
def _abbreviated(release: str, option: str) -> Flag | None:
    """The one flag of a release that begins so; None where there is none. Raises ConfigError for several."""
    options = flag_table(release).options
    fits = [known for known in options if known.startswith(option)]
    if len({(options[known].name, options[known].negates) for known in fits}) > 1:
        raise ConfigError(
            f"{option}: ambiguous in vLLM {release}: it could be {', '.join(sorted(fits)[:6])}; "
            "write the flag out"
        )
    return options[fits[0]] if fits else None


@functools.cache
def flag_table(release: str | None = None) -> FlagTable:
    """The flags of a release; None, or one that isn't in the table: those of the nearest release that is."""
    data = _data()
    known: list[str] = data["releases"]
    nearest = known[-1] if release is None else nearest_release(release, known) or known[-1]
    number = _number(nearest)
    options: dict[str, Flag] = {}
    for row in data["flags"]:
        strings, name, values, since, until = (*row, None, None)[:5]
        if since is not None and _number(since) > number:
            continue
        if until is not None and _number(until) < number:
            continue
        for option in strings.split():
            options[option] = Flag(name, "switch" if values == "set" else values)
            if values == "switch" and option.startswith("--"):
                for negation in _negations(option, number):
                    options.setdefault(negation, Flag(name, values, negates=True))
    names = {flag.name: flag for flag in options.values() if not flag.negates}
    return FlagTable(nearest, MappingProxyType(options), MappingProxyType(names))


def _negations(option: str, number: tuple[int, int, int]) -> list[str]:
    found = [f"--no-{option[2:]}"]
    if number >= PAIRED_SINCE:
        pairs = (("--enable-", "--disable-"), ("--disable-", "--enable-"))
        found += [
            inverse + option.removeprefix(prefix) for prefix, inverse in pairs if option.startswith(prefix)
        ]
    return found


def releases_with(name: str) -> tuple[str, ...]:
    """The releases of the table that have an argument of this flat name."""
    return tuple(release for release in _data()["releases"] if name in flag_table(release).names)


def _number(release: str) -> tuple[int, int, int]:
    number = release_number(release)
    assert number is not None
    return number


@functools.cache
def _data() -> dict[str, Any]:
    file = importlib.resources.files(__package__) / "flags.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data
