"""Workers as Ray actors, in a placement group (`distributed_executor_backend: ray`).

Ray starts them, watches them and knows why they are gone. Messages go over TCP, and the code that carries
them out is that of a worker's process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dodona.runners.distributed.connecting import Listener
from dodona.runners.distributed.ray_actors import GONE_S, Engine, MachineActor, WorkerActor
from dodona.runners.distributed.ray_cluster import LOOPBACK, import_ray, initialised
from dodona.runners.distributed.worker_handle import Ending, Launched, WorkerHandle
from dodona.runners.errors import EngineSetupError

_START_S = 120.0
"""Seconds in which Ray must have started the actors."""

_HERE_S = 1.0
"""Seconds in which Ray must have found room on this machine, before others of the cluster are asked."""

_ANSWER_S = 15.0
"""Seconds in which Ray must have answered for a process: it may wait for one to be gone."""

_SOON_S = 1.0
"""Seconds in which a process ends that Ray has told to."""

_INHERITED = ("HF_", "HUGGING_FACE_", "NCCL_", "PYTORCH_", "TORCH", "TRANSFORMERS_", "TRITON_")
"""How the names of the environment variables begin that workers take over from the engine's process."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a rank's worker runs."""

    bundle: int
    """Number in the placement group."""
    node: str
    """Ray's name of the machine."""
    address: str


@contextlib.contextmanager
def ray_workers(
    count: int,
    folder: Path,
    *,
    sharing: int,
    gpus: bool = False,
    here_only: bool = False,
    room_s: float = 30.0,
) -> Iterator[Launched]:
    """Actors for the ranks 0 .. count-1, one CPU for each; see `workers.Launch`.

    They run on this machine where Ray has room on it, else on any of the cluster. sharing: ranks of all
    replicas, which share our own Ray. gpus: also a GPU for each. here_only: on this machine, or not at all.
    room_s: seconds in which Ray must have found room for them.

    Uses Ray as `ray_cluster.initialised` does. Raises EngineSetupError where Ray is not installed, has no
    room, or can't start the workers, and where they can't connect.
    """
    ray = import_ray()
    with contextlib.ExitStack() as stack:
        stack.enter_context(initialised(ray, sharing))
        here = ray.get_runtime_context().get_node_id()
        this = _addresses(ray)[here]
        bundle = {"CPU": 1, **({"GPU": 1} if gpus else {})}
        group = stack.enter_context(_placement(ray, bundle, count, room_s, this=this, here_only=here_only))
        places = _places(ray, group, count, here)
        spread = any(place.node != here for place in places)
        if spread and count > 1:
            from dodona.runners.distributed.joining import store_at

            store = stack.enter_context(store_at(this))
        else:
            store = str(folder / "store")
        listener = Listener(this if spread else LOOPBACK)
        stack.callback(listener.close)
        try:
            watching = {
                node: stack.enter_context(_machine(ray, node)) for node in {place.node for place in places}
            }
            workers = _start(ray, group, places, watching, listener, spread=spread)
        except (ray.exceptions.RayError, OSError) as error:
            raise EngineSetupError(f"Ray did not start the workers: {_said(error)}") from error
        yield Launched(workers, store)


def _start(
    ray: Any,
    group: Any,
    places: Sequence[_Place],
    machines: Mapping[str, Any],
    listener: Listener,
    *,
    spread: bool,
) -> Sequence[WorkerHandle]:
    """The workers, once all of them have connected."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    remote = ray.remote(WorkerActor)
    logs = ray.get([machines[p.node].log.remote(rank) for rank, p in enumerate(places)], timeout=_START_S)
    actors = [
        remote.options(
            num_cpus=1,
            num_gpus=group.bundle_specs[place.bundle].get("GPU", 0),
            max_restarts=0,
            runtime_env=_runtime_env(),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=place.bundle
            ),
        ).remote(log)
        for place, log in zip(places, logs, strict=True)
    ]
    processes: list[tuple[int, int | None]] = ray.get(
        [actor.process.remote() for actor in actors], timeout=_START_S
    )
    ray.get(
        [machines[p.node].watch.remote(pid) for p, (pid, _) in zip(places, processes, strict=True)],
        timeout=_START_S,
    )
    engine = Engine(
        listener.host,
        listener.port,
        listener.key,
        {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)},
        str(Path.cwd()),
    )
    served = [
        actor.serve.remote(engine, rank, place.address if spread else None)
        for rank, (actor, place) in enumerate(zip(actors, places, strict=True))
    ]

    def check() -> None:
        for ended in ray.wait(served, timeout=0)[0]:
            rank = served.index(ended)
            ray.get(ended)
            raise OSError(f"the worker of rank {rank} has ended")

    connections = listener.accept(len(places), _START_S, check)
    return [
        RayWorker(ray, rank, processes[rank], connections[rank], place, machines[place.node], actor, on)
        for rank, (place, actor, on) in enumerate(zip(places, actors, served, strict=True))
    ]


class RayWorker(WorkerHandle):
    """A worker in an actor's process. process: its id, and its device. served: Ray's promise of its end."""

    def __init__(
        self,
        ray: Any,
        rank: int,
        process: tuple[int, int | None],
        connection: Connection[bytes, bytes],
        place: _Place,
        machine: Any,
        actor: Any,
        served: Any,
    ) -> None:
        pid, device = process
        super().__init__(rank, pid, connection, machine=place.address, device=device)
        self._ray = ray
        self._machine = machine
        self._actor = actor
        self._served = served
        self._lines: Sequence[str] = ()
        """What the worker had printed when it ended."""

    def is_lost(self) -> bool:
        """See `WorkerHandle.is_lost`."""
        return self._ray.is_initialized() and bool(self._ray.wait([self._served], timeout=0)[0])

    def dump_stack(self) -> None:
        """See `WorkerHandle.dump_stack`."""
        self._ask(self._machine.dump_stack, self.pid, otherwise=None)

    def is_stopped(self) -> bool:
        """See `WorkerHandle.is_stopped`."""
        stopped: bool = self._ask(self._machine.is_stopped, self.pid, otherwise=False)
        return stopped

    def log_tail(self) -> Sequence[str]:
        """See `WorkerHandle.log_tail`."""
        self._lines = self._ask(self._machine.log_tail, self.rank, otherwise=self._lines)
        return self._lines

    def end(self, patience_s: float) -> Ending:
        """See `WorkerHandle.end`."""
        self.close()
        if not self._ray.is_initialized():  # somebody has shut it down, and with it the actor
            return Ending("ended", by_itself=True)
        ended = self._ending(patience_s)
        self._ray.kill(self._actor)
        if not self._ask(self._machine.is_gone, self.pid, _SOON_S, otherwise=True):
            self._ask(self._machine.kill, self.pid, otherwise=None)  # a stopped one doesn't hear Ray
        self.log_tail()
        return ended

    def _ending(self, patience_s: float) -> Ending:
        """What Ray says within `patience_s`; of a process that is gone, it soon says so."""
        errors = self._ray.exceptions
        is_gone = self._ask(self._machine.is_gone, self.pid, 0.1, otherwise=True)
        try:
            self._ray.get(self._served, timeout=GONE_S if is_gone else patience_s)
        except errors.GetTimeoutError:
            return Ending("was killed", by_itself=True)
        except errors.RayError as error:
            return Ending(f"was lost; Ray says: {_said(error)}", by_itself=False)
        return Ending("ended", by_itself=True)

    def _ask(self, method: Any, *arguments: Any, otherwise: Any) -> Any:
        """What the worker's machine says; `otherwise` where it is gone."""
        if not self._ray.is_initialized():
            return otherwise
        try:
            return self._ray.get(method.remote(*arguments), timeout=_ANSWER_S)
        except self._ray.exceptions.RayError:
            return otherwise


@contextlib.contextmanager
def _placement(
    ray: Any, bundle: Mapping[str, float], count: int, room_s: float, *, this: str, here_only: bool
) -> Iterator[Any]:
    """A placement group with `count` times the resources of `bundle`. this: this machine's address."""
    from ray.util.placement_group import placement_group, remove_placement_group

    def remove() -> None:
        if ray.is_initialized():
            remove_placement_group(group)

    on_this = {**bundle, f"node:{this}": 0.001}
    group = placement_group([on_this] * count, strategy="STRICT_PACK")
    try:
        if not group.wait(room_s if here_only else _HERE_S):
            if not here_only:
                remove()
                group = placement_group([dict(bundle)] * count, strategy="PACK")
            if here_only or not group.wait(room_s):
                each = " and ".join(f"one {name}" for name in bundle)
                raise EngineSetupError(
                    f"Ray has no room for {count} workers of {each} each"
                    f"{' on this machine' if here_only else ''} within {room_s:.0f} s; "
                    f"what is free of the cluster: {ray.available_resources()}"
                )
        yield group
    finally:
        remove()


def _addresses(ray: Any) -> Mapping[str, str]:
    """Of the cluster's machines, by their names."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _places(ray: Any, group: Any, count: int, here: str) -> Sequence[_Place]:
    """By rank. Ranks of one machine are neighbours, since neighbours exchange the most."""
    from ray.util import placement_group_table

    nodes: Mapping[int, str] = placement_group_table(group)["bundles_to_node_id"]
    per_node, addresses = Counter(nodes.values()), _addresses(ray)  # some may have joined meanwhile

    def order(bundle: int) -> tuple[bool, int, str, int]:
        node = nodes[bundle]
        return node != here, -per_node[node], node, bundle

    return [
        _Place(bundle, nodes[bundle], addresses[nodes[bundle]]) for bundle in sorted(range(count), key=order)
    ]


@contextlib.contextmanager
def _machine(ray: Any, node: str) -> Iterator[Any]:
    """A `MachineActor` there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = (
        ray.remote(MachineActor)
        .options(
            num_cpus=0,
            max_restarts=0,
            runtime_env=_runtime_env(),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote()
    )
    try:
        yield actor
    finally:
        if ray.is_initialized():
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(actor.close.remote(), timeout=_ANSWER_S)
            ray.kill(actor)


def _runtime_env() -> Mapping[str, Any]:
    """Workers import what this process can import, and see all GPUs: those of one machine share memory."""
    return {
        "env_vars": {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        }
    }


def _said(error: BaseException) -> str:
    """What an error says, in one line; of one in Ray's process, that one alone."""
    return " ".join(str(getattr(error, "cause", None) or error).split())
