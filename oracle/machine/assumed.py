"""Machines to decide for that are not this one: by name, by several names, or from a file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dodona.oracle.config.yaml_file import read_arguments
from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.machine.environment import Environment
from dodona.oracle.machine.packages import PACKAGES
from dodona.oracle.printable import short

MACHINES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "h100": {"platform": "cuda", "has_triton": True, "compute_capability": 90, "memory": 80},
        "h200": {"platform": "cuda", "has_triton": True, "compute_capability": 90, "memory": 141},
        "a100": {"platform": "cuda", "has_triton": True, "compute_capability": 80, "memory": 80},
        "l4": {"platform": "cuda", "has_triton": True, "compute_capability": 89, "memory": 24},
        "b200": {"platform": "cuda", "has_triton": True, "compute_capability": 100, "memory": 180},
        "mi300x": {"platform": "rocm", "has_triton": True, "memory": 192},
        "xpu": {"platform": "xpu", "has_triton": True},
        "cpu": {"platform": "cpu", "has_triton": False},
        "wsl2": {"wsl": True},
        "no-triton": {"has_triton": False},
        "logits-plugin": {"logitsproc_plugins": True},
    }
)
"""What a name says of the machine; what it leaves out is as with `h100`, but for the memory."""


def assumed_machine(names: Sequence[str], *, override: str | None = None) -> Environment:
    """The machine of names that are put together (`wsl2`, `no-triton`), each of `MACHINES` or the path of a
    YAML file with fields of `Environment`, a package's version (`transformers==5.23.0`) or its absence
    (`no-ray`); later ones win. What nobody says of packages is not known.

    override: the runner that is forced there. Raises ConfigError for an unknown name, and for fields that do
    not go together.
    """
    # of a GPU that nobody names, the memory isn't known
    fields = {name: value for name, value in MACHINES["h100"].items() if name != "memory"}
    packages: dict[str, str | None] = {}
    for name in names:
        told = _told(name)
        if told.get("platform", "cuda") != "cuda":
            fields.pop("compute_capability", None)
            fields.pop("device_count", None)
            fields.pop("memory", None)
        named = told.get("packages", {})
        if not isinstance(named, Mapping):
            raise ConfigError(f"{name}: packages: expected versions by package, got {short(named)}")
        packages |= named
        fields.update(told)
    return Environment(**{**fields, "packages": packages, "override": override})


def _told(name: str) -> Mapping[str, Any]:
    known = MACHINES.get(name.lower())
    if known is not None:
        return known
    package, pinned, version = name.partition("==")
    if pinned:
        return {"packages": {package.strip(): version.strip()}}
    if name.removeprefix("no-") in PACKAGES:
        return {"packages": {name.removeprefix("no-"): None}}
    if name.endswith((".yaml", ".yml")):
        found = read_arguments(Path(name))
        for field in found:
            if field not in _fields():
                hint = did_you_mean(field, _fields())
                raise ConfigError(
                    f"{name}: {field}: no such field of a machine" + (f"; {hint}" if hint else "")
                )
        return found
    hint = did_you_mean(name, MACHINES)
    known_names = f"expected one of {', '.join(MACHINES)}, or the path of a .yaml file"
    raise ConfigError(f"--assume {name}: no such machine; {hint or known_names}")


@functools.cache
def _fields() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Environment))
