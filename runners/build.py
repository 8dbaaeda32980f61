"""From a verdict to its runner, which is not loaded yet."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.parallel import uses_workers
from dodona.oracle.systems.own.resolved import resolved_runner_type
from dodona.oracle.systems.registry import system_of
from dodona.runners.limits import Limits, resolve_limits

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.runners.interface import Runner

    RunnerClass = type[Runner]


def _v1() -> RunnerClass:
    from dodona.runners.v1.runner import V1Runner

    return V1Runner


def _v2() -> RunnerClass:
    from dodona.runners.v2.runner import V2Runner

    return V2Runner


def _v1_pooling() -> RunnerClass:
    from dodona.runners.v1.pooling.runner import V1PoolingRunner

    return V1PoolingRunner


RUNNERS: dict[str, Callable[[], RunnerClass]] = {"v1": _v1, "v2": _v2}
"""By a runner's name in the rule book, a function that imports and returns its class.

A runner is imported when it is built: V2 needs Triton, which is not installed everywhere.
"""


def _v2_pooling() -> RunnerClass:
    from dodona.runners.v2.pooling.runner import V2PoolingRunner

    return V2PoolingRunner


POOLING_RUNNERS: dict[str, Callable[[], RunnerClass]] = {"v1": _v1_pooling, "v2": _v2_pooling}
"""The same for runner type "pooling"."""


def build_runner(
    verdict: Verdict,
    model: ModelInfo | None = None,
    limits: Limits | None = None,
    *,
    replica: int = 0,
    given_up: Event | None = None,
) -> Runner:
    """Make the runner that the verdict chose.

    model: config.json of the verdict's model; None reads it.
    limits: those of the verdict's configuration; None resolves them.
    replica: number among `data_parallel_size`, each of which takes the next devices.
    given_up: see `startup.start`.

    Raises UnsupportedConfiguration where there are refusals, where the book describes another system, or
    where it names a runner that there is none of; and what `resolve_limits` raises.
    """
    if not system_of(verdict.rulebook.system).builds_runners:
        raise UnsupportedConfiguration(
            f"rule book {verdict.rulebook.name} describes {verdict.rulebook.system}, whose runners are not "
            "built here; select with rulebook='dodona'",
            verdict=verdict,
        )
    if verdict.refusals or verdict.runner is None:
        raise UnsupportedConfiguration.from_verdict(verdict)
    if verdict.runner not in RUNNERS:
        raise UnsupportedConfiguration(
            f"rule book {verdict.rulebook.name} chose runner {verdict.runner!r}, and only "
            f"{', '.join(RUNNERS)} can be built; select with rulebook='dodona'",
            verdict=verdict,
        )
    config = verdict.config
    if model is None:
        model = ModelInfo.load(
            locate_or_download(config.model_config.model, revision=config.model_config.revision)
        )
    if limits is None:
        limits = resolve_limits(config, model)
    pools = resolved_runner_type(config, model) == "pooling"
    runner_class = (POOLING_RUNNERS if pools else RUNNERS)[verdict.runner]()
    if uses_workers(config):
        from dodona.runners.distributed.runner import DistributedRunner

        return DistributedRunner(runner_class, config, model, limits, replica=replica, given_up=given_up)
    return runner_class(config, model, limits)
