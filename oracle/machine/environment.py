"""`Environment`: the machine and the process as rules see them, and how they are found out."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, Strict
from pydantic.dataclasses import dataclass

from dodona.oracle.config.sections import config_errors
from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.loading import resolve_bundled
from dodona.oracle.language.rulebook import OWN_SYSTEM, EnvironmentVariable, RuleBook
from dodona.oracle.machine.packages import PACKAGES, TESTED
from dodona.oracle.printable import short

WSL_PIN_MEMORY: Final = "VLLM_WSL2_ENABLE_PIN_MEMORY"
ALLOW_LONG: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
PLATFORMS: Final = ("cuda", "rocm", "xpu", "cpu", "tpu", "unspecified")
ASSUMED_COMPUTE_CAPABILITY: Final = 90
"""Compute capability that is assumed for a CUDA environment without one (a Hopper GPU)."""
ASSUMED_DEVICE_COUNT: Final = 8
"""Number of devices that is assumed for a CUDA environment without one."""


_VERSION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})*[!-~]{,40}")


def _capability(value: object) -> object:
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, int) for part in value):
        return value[0] * 10 + value[1]
    return value


def _versions(value: object) -> object:
    """A mapping of packages to versions as sorted pairs."""
    if not isinstance(value, Mapping):
        return value
    for name, version in value.items():
        if name not in PACKAGES:
            hint = did_you_mean(str(name)[:80], PACKAGES) or f"expected one of {', '.join(PACKAGES)}"
            raise ValueError(f"{short(name)}: rules do not read the version of this package; {hint}")
        if isinstance(version, str) and not _VERSION.fullmatch(version):
            raise ValueError(f"{name}: {short(version)} is no version; expected one such as {TESTED[name]}")
    return tuple(sorted(value.items()))


@config_errors("environment")
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Environment:
    """What rules may read of the machine. Immutable; raises ConfigError for a value that a field can't
    have."""

    has_triton: Annotated[bool, Strict()]
    """Triton is installed, and there is a GPU with a driver for it to compile for."""
    platform: Literal["cuda", "rocm", "xpu", "cpu", "tpu", "unspecified"]
    override: Annotated[str, Strict(), Field(min_length=1)] | None = None
    """The runner that the user forces, by its name in the rule book."""
    compute_capability: Annotated[int, Strict(), BeforeValidator(_capability)] | None = None
    """Lowest of the visible CUDA devices; (9, 0) and 90 are the same and held as 90.

    On CUDA, 90 is assumed where it isn't given; on other platforms it must not be given.
    """
    logitsproc_plugins: Annotated[bool, Strict()] = False
    """Whether an installed package offers logits processors (the entry-point group
    `vllm.logits_processors`)."""

    device_count: Annotated[int, Strict(), Field(ge=1)] | None = None
    """How many CUDA devices are visible.

    On CUDA, 8 is assumed where it isn't given; on other platforms it must not be given.
    """

    wsl: Annotated[bool, Strict()] = False
    """The machine is Linux inside Windows (WSL)."""
    wsl_pin_memory: Annotated[bool, Strict()] = False
    """`VLLM_WSL2_ENABLE_PIN_MEMORY` asks vLLM to pin host memory on WSL."""
    memory: Annotated[float, Field(gt=0)] | None = None
    """GiB of memory of the smallest visible GPU; None: not known."""
    host_memory: Annotated[float, Field(gt=0)] | None = None
    """GiB of memory of the machine itself, or of its control group; None: not known."""
    ray_cluster: Annotated[bool, Strict()] = False
    """Ray's workers run on a cluster: `RAY_ADDRESS` names one, or the process has initialised Ray."""
    is_here: Annotated[bool, Strict()] = False
    """The machine is this one, so that a model's directory has here what an engine will find in it."""
    variables: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of the environment variables of vLLM (`VLLM_…`) that are set, sorted."""
    packages: Annotated[
        tuple[tuple[str, Annotated[str, Strict()] | None], ...],
        BeforeValidator(_versions),
        PlainSerializer(dict, return_type=dict[str, str | None]),
    ] = ()
    """Installed versions of `PACKAGES` as sorted pairs, given as pairs or as a mapping. None: the package is
    not installed; a package that is left out: not known.
    """

    def __post_init__(self) -> None:
        if self.platform != "cuda" and self.compute_capability is not None:
            raise ValueError(f"platform {self.platform!r} has no CUDA compute capability; leave it out")
        if self.platform != "cuda" and self.device_count is not None:
            raise ValueError(f"platform {self.platform!r} has no CUDA devices to count; leave it out")
        if self.platform == "cuda" and self.device_count is None:
            object.__setattr__(self, "device_count", ASSUMED_DEVICE_COUNT)
        if self.platform == "cuda" and self.compute_capability is None:
            object.__setattr__(self, "compute_capability", ASSUMED_COMPUTE_CAPABILITY)

    def version(self, package: str) -> FactValue:
        """The installed version of one of `PACKAGES`; None: not installed; UNKNOWN: not known."""
        return dict[str, FactValue](self.packages).get(package, UNKNOWN)

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None, *, book: RuleBook | None = None) -> Environment:
        """This machine, and the runner that an environment variable forces.

        environ: environment variables; None: those of the process. book: the rule book whose `environment`
        section says which variable forces a runner, and how it is read; None: Dodona's own book.

        Imports neither torch nor triton and creates no CUDA context. Results of looking at the machine are
        kept for the life of the process. Raises ConfigError for a value of the variable without a meaning.
        """
        from dodona.oracle.machine.memory import host_memory
        from dodona.oracle.machine.packages import installed_versions
        from dodona.oracle.machine.probe import (
            cuda_capabilities,
            cuda_memory,
            has_entry_points,
            has_package,
            is_wsl,
            torch_supports_cuda,
            uses_ray_cluster,
        )

        environ = os.environ if environ is None else environ
        override = forced_runner(_own_variable() if book is None else book.environment, environ)
        found = cuda_capabilities(environ.get("CUDA_VISIBLE_DEVICES")) if torch_supports_cuda() else ()
        return cls(
            has_triton=bool(found) and has_package("triton"),
            platform="cuda" if found else "cpu",
            override=override,
            compute_capability=min(found, default=None),
            device_count=len(found) or None,
            logitsproc_plugins=has_entry_points("vllm.logits_processors"),
            wsl=is_wsl(),
            wsl_pin_memory=is_on(environ.get(WSL_PIN_MEMORY)),
            host_memory=host_memory(),
            ray_cluster=uses_ray_cluster(environ),
            is_here=True,
            memory=cuda_memory(environ.get("CUDA_VISIBLE_DEVICES")) if found else None,
            variables=vllm_variables(environ),
            packages=installed_versions(),
        )


def vllm_variables(environ: Mapping[str, str | None]) -> tuple[str, ...]:
    """Names of vLLM's variables that are set, sorted; `ALLOW_LONG` only where it is on."""
    return tuple(
        sorted(
            name
            for name, value in environ.items()
            if name.startswith("VLLM_")
            and value is not None
            and (name != ALLOW_LONG or value.strip().lower() in ("1", "true"))
        )
    )


def is_on(value: str | None) -> bool:
    """Whether a variable of vLLM that is a switch (a whole number, 0 for off) is on."""
    try:
        return value is not None and int(value) != 0
    except ValueError:
        return False


def forced_runner(
    variable: EnvironmentVariable | None, environ: Mapping[str, str] | None = None
) -> str | None:
    """The runner that a rule book's environment variable forces; None where it is unset, or there is none.

    environ: environment variables; None: those of the process. Raises ConfigError for a value without a
    meaning.
    """
    if variable is None:
        return None
    return variable.parse((os.environ if environ is None else environ).get(variable.variable))


def check_override(environment: Environment, book: RuleBook) -> None:
    """Raises ConfigError where an environment forces a runner that the book doesn't have."""
    if environment.override is not None and environment.override not in book.runners:
        raise ConfigError(
            f"environment.override: rule book {book.rulebook} has no runner {environment.override!r}; "
            f"expected one of {', '.join(book.runners)}"
        )


@functools.cache
def _own_variable() -> EnvironmentVariable | None:
    """The environment section of Dodona's own book, read without the book's rules."""
    data = resolve_bundled(OWN_SYSTEM).document.data
    return None if "environment" not in data else EnvironmentVariable.model_validate(data["environment"])


@functools.cache
def assumed_gpu(override: str | None = None) -> Environment:
    """A machine with eight Hopper GPUs and Triton, for asking on another machine what one would do."""
    return Environment(has_triton=True, platform="cuda", override=override)


@functools.cache
def plain_gpu() -> Environment:
    """`assumed_gpu()` with every package of `PACKAGES` installed: the machine of a plain configuration."""
    return dataclasses.replace(assumed_gpu(), packages=tuple(sorted(TESTED.items())))
