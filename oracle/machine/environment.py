"""`Environment`: the machine and the process as rules see them, and how they are found out."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Strict
from pydantic.dataclasses import dataclass

from dodona.oracle.config.sections import config_errors
from dodona.oracle.errors import ConfigError

OVERRIDE_VARIABLE = "DODONA_USE_V2_MODEL_RUNNER"
PLATFORMS = ("cuda", "rocm", "xpu", "cpu", "tpu", "unspecified")
ASSUMED_COMPUTE_CAPABILITY = 90
"""What a CUDA environment that doesn't say is taken for (a Hopper GPU)."""

Override = Literal["v1", "v2"]

_OVERRIDES: Mapping[str, Override] = {"0": "v1", "1": "v2"}


def _capability(value: object) -> object:
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, int) for part in value):
        return value[0] * 10 + value[1]
    return value


@config_errors("environment")
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Environment:
    """What rules may read of the machine. Immutable; raises ConfigError for a value that a field can't
    have."""

    has_triton: Annotated[bool, Strict()]
    """Triton is installed, and there is a GPU with a driver for it to compile for."""
    platform: Literal["cuda", "rocm", "xpu", "cpu", "tpu", "unspecified"]
    override: Override | None = None
    """The runner that the user forces."""
    compute_capability: Annotated[int, Strict(), BeforeValidator(_capability)] | None = None
    """Lowest of the visible CUDA devices; (9, 0) and 90 are the same and held as 90.

    On CUDA, 90 is assumed where it isn't given; on other platforms it must not be given.
    """
    logitsproc_plugins: Annotated[bool, Strict()] = False
    """Whether an installed package offers logits processors (the entry-point group
    `vllm.logits_processors`)."""

    def __post_init__(self) -> None:
        if self.platform != "cuda" and self.compute_capability is not None:
            raise ValueError(f"platform {self.platform!r} has no CUDA compute capability; leave it out")
        if self.platform == "cuda" and self.compute_capability is None:
            object.__setattr__(self, "compute_capability", ASSUMED_COMPUTE_CAPABILITY)

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> Environment:
        """This machine, as `environ` (None: the process's environment variables) lets it be seen.

        Imports neither torch nor triton and makes no CUDA context. What it finds of the machine is kept for
        the life of the process. Raises ConfigError only for a value of the override variable that means
        nothing.
        """
        from dodona.oracle.machine.probe import (
            cuda_capability,
            has_entry_points,
            has_package,
            torch_supports_cuda,
        )

        environ = os.environ if environ is None else environ
        override = parse_override(environ.get(OVERRIDE_VARIABLE))
        capability = cuda_capability(environ.get("CUDA_VISIBLE_DEVICES")) if torch_supports_cuda() else None
        return cls(
            has_triton=capability is not None and has_package("triton"),
            platform="cpu" if capability is None else "cuda",
            override=override,
            compute_capability=capability,
            logitsproc_plugins=has_entry_points("vllm.logits_processors"),
        )


def parse_override(value: str | None) -> Override | None:
    """The runner that a value of the override variable forces; None (unset) leaves it to the rules.

    Raises ConfigError that names the variable and the three meanings.
    """
    if value is None:
        return None
    if value not in _OVERRIDES:
        raise ConfigError(
            f"{OVERRIDE_VARIABLE}={value!r} means nothing: unset it to let the rules decide, "
            'set it to "0" for runner V1, or to "1" for runner V2'
        )
    return _OVERRIDES[value]


@functools.cache
def assumed_gpu(override: Override | None = None) -> Environment:
    """A machine with one Hopper GPU and Triton, for asking on another machine what one would do."""
    return Environment(has_triton=True, platform="cuda", override=override)
