"""What the engine's process and its workers tell each other. Everything is pickled over a socket."""

from __future__ import annotations

import copyreg
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dodona.runners.distributed.ranks import RankSizes

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.interface import GrammarOutput, Runner, SchedulerOutput, StepOutput
    from dodona.runners.limits import Limits


def _reduce_mapping(mapping: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return _read_only, (dict(mapping),)


def _read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


# A ModelInfo holds read-only mappings, which don't pickle by themselves.
copyreg.pickle(MappingProxyType, _reduce_mapping)


@dataclass(frozen=True, slots=True)
class Start:
    """Join the other ranks and make the runner. The first message to a worker; it answers."""

    runner_class: Callable[..., Runner]
    """The runner that the verdict chose, called with (config, model, limits) and, of several ranks, the mesh:
    no worker decides."""
    config: EngineConfig
    model: ModelInfo
    limits: Limits
    rank: int
    sizes: RankSizes
    device_index: int
    """Number of the GPU among the visible ones."""
    store: str
    """Where the ranks find each other, see `worker_handle.Launched`."""
    timeout_s: float
    """Seconds after which an exchange between ranks fails."""
    start_timeout_s: float
    """Seconds in which all ranks must have come."""
    sharing: int = 1
    """Ranks of all replicas: on a CPU they share the processor and its memory."""
    max_adapters: int = 0
    """LoRA adapters that are sent once; see `adapters.AdapterSender`."""


@dataclass(frozen=True, slots=True)
class Call:
    """Call a method of the runner; every rank answers with its result."""

    method: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Read:
    """Read an attribute of the runner; every rank answers with it."""

    attribute: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a step's forward pass; nobody answers."""

    step: SchedulerOutput
    sampled: StepOutput | None
    """What the sampling rank sampled and the engine read since, for the other ranks; None where each samples
    for itself."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Sample for the step's rows. The sampling rank answers with the StepOutput; where all ranks sample, the
    others are asked too, and don't answer."""

    grammar_output: GrammarOutput | None


@dataclass(frozen=True, slots=True)
class Transfers:
    """Answer with what the KV connector reports of the step. Ranks that don't sample are asked."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Shut the runner down and end; nobody answers."""


Message = Start | Call | Read | Execute | Sample | Transfers | Stop


@dataclass(frozen=True, slots=True)
class Result:
    """A message was carried out."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """A message was not carried out."""

    error: Exception
    traceback: str
    at: float
    """`time.time()`, which all processes of a machine share: the cause is the earliest failure. Clocks of
    several machines differ by some milliseconds, and as much may pass for the cause."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that an exception, which is being handled, makes."""
        return cls(error, "".join(traceback.format_exception(error)), time.time())


Answer = Result | Failure
