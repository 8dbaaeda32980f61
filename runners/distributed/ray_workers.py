"""Workers as Ray actors, in a placement group on this machine (`distributed_executor_backend: ray`).

Ray starts them, watches them and knows why they are gone. Messages go over Unix sockets, and the code that
carries them out is that of a worker's process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from dodona.runners.distributed.own_folder import OwnFolder
from dodona.runners.distributed.worker import serve
from dodona.runners.distributed.worker_handle import LOG_LINES, Ending, WorkerHandle
from dodona.runners.errors import EngineSetupError

EXTRA = "ray"
"""The optional dependency of pyproject.toml that brings Ray."""

_START_S = 120.0
"""Seconds in which Ray must have started the actors."""

_OWN_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray of our own listens on the loopback interface only, as it does by itself on Windows and macOS, and
reports nothing to its makers."""

_PATIENCE_S = 10.0
"""Seconds in which a killed process must be gone, and Ray must have noticed."""

_LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def ray_workers(
    count: int, folder: Path, *, sharing: int, room_s: float = 30.0
) -> Iterator[Sequence[WorkerHandle]]:
    """Actors for the ranks 0 .. count-1, one CPU for each; see `workers.Launch`.

    sharing: ranks of all replicas, which share Ray of our own.
    room_s: seconds in which Ray must have found room for them.

    Uses Ray as this process has initialised it, or else starts it here, and ends it with its last user.
    Raises EngineSetupError where Ray is not installed, has no room on this machine, or can't start them.
    """
    os.environ.update({name: value for name, value in _OWN_RAY.items() if name not in os.environ})
    try:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    except ImportError as error:
        raise EngineSetupError(
            "distributed_executor_backend 'ray' needs the package ray, which is not installed: "
            f"pip install 'dodona[{EXTRA}]', or choose 'mp'"
        ) from error
    with _initialised(ray, sharing):
        # The ranks find each other by a file, and this process by sockets: all of them are on this machine.
        here = f"node:{ray.util.get_node_ip_address()}"
        group = placement_group([{"CPU": 1, here: 0.001}] * count, strategy="STRICT_PACK")
        try:
            if not group.wait(room_s):
                raise EngineSetupError(
                    f"Ray has no room for {count} workers of one CPU each on this machine within "
                    f"{room_s:.0f} s; what is free of the cluster: {ray.available_resources()}"
                )
            remote = ray.remote(_Actor)
            paths = [(folder / f"commands-{rank}", folder / f"log-{rank}") for rank in range(count)]
            with contextlib.ExitStack() as listening:
                sockets = [listening.enter_context(_listener(commands)) for commands, _ in paths]
                actors = [
                    remote.options(
                        num_cpus=1,
                        max_restarts=0,
                        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
                        scheduling_strategy=PlacementGroupSchedulingStrategy(
                            group, placement_group_bundle_index=rank
                        ),
                    ).remote(str(commands), str(log))
                    for rank, (commands, log) in enumerate(paths)
                ]
                try:
                    pids = ray.get([actor.pid.remote() for actor in actors], timeout=_START_S)
                except ray.exceptions.RayError as error:
                    raise EngineSetupError(f"Ray did not start the workers: {error}") from error
                connections = [Connection(each.accept()[0].detach()) for each in sockets]
            yield [
                RayWorker(rank, pids[rank], connections[rank], paths[rank][1], actor)
                for rank, actor in enumerate(actors)
            ]
        finally:
            if ray.is_initialized():
                remove_placement_group(group)


class RayWorker(WorkerHandle):
    """A worker in an actor's process."""

    def __init__(
        self, rank: int, pid: int, connection: Connection[bytes, bytes], log: Path, actor: Any
    ) -> None:
        super().__init__(rank, pid, connection)
        self._log = log
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._actor = actor
        self._process = os.pidfd_open(pid)
        self._served = actor.serve.remote()

    def log_tail(self) -> Sequence[str]:
        """See `WorkerHandle.log_tail`."""
        with (
            contextlib.suppress(FileNotFoundError),  # removed: what was read before is all
            self._log.open(encoding="utf-8", errors="replace") as file,
        ):
            self._lines.extend(line.rstrip() for line in deque(file, LOG_LINES))
        return tuple(self._lines)

    def end(self, patience_s: float) -> Ending:
        """See `WorkerHandle.end`."""
        import ray

        self.close()
        ended = Ending("ended", by_itself=True)
        if ray.is_initialized():  # nobody has shut it down, and with it the actor
            ended = self._ending(ray, patience_s)
            ray.kill(self._actor)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)  # a stopped one doesn't hear Ray
        self._is_gone(_PATIENCE_S)
        os.close(self._process)
        self.log_tail()
        return ended

    def _ending(self, ray: Any, patience_s: float) -> Ending:
        """What Ray says within `patience_s`; of a process that is gone, it soon says so."""
        limit = _PATIENCE_S if self._is_gone(0.1) else patience_s
        try:
            ray.get(self._served, timeout=limit)
        except ray.exceptions.GetTimeoutError:
            return Ending("was killed", by_itself=True)
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split())
            return Ending(f"was lost; Ray says: {said}", by_itself=False)
        return Ending("ended", by_itself=True)

    def _is_gone(self, within_s: float) -> bool:
        return bool(select.select([self._process], [], [], within_s)[0])


class _Actor:
    """In Ray's process."""

    def __init__(self, commands: str, log: str) -> None:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's, which then stops its workers
        faulthandler.register(signal.SIGUSR1, file=2)  # the engine asks where a worker hangs
        self._connection = Client(commands, "AF_UNIX")

    def pid(self) -> int:
        """The process's id, once there is a connection."""
        return os.getpid()

    def serve(self) -> None:
        """Carry out messages until `Stop`, or until the engine has closed the connection."""
        with self._connection:
            serve(self._connection)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    listener.settimeout(_START_S)
    return listener


class _OwnRay:
    """Ray that this process starts, and ends with its last user.

    A thread keeps it: Linux ends Ray's processes with the thread that started them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._unused = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def used(self, ray: Any, num_cpus: int) -> Iterator[None]:
        """Ray is there within the context."""
        with self._lock:
            if self._users == 0:
                self._start(ray, num_cpus)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._end()

    @property
    def is_used(self) -> bool:
        """Whether Ray is one of our own."""
        with self._lock:
            return self._users > 0

    def _start(self, ray: Any, num_cpus: int) -> None:
        if ray.util.get_node_ip_address() != _LOOPBACK:
            raise EngineSetupError(
                "Ray was imported before, and would listen beyond the loopback interface: set "
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 first, or call ray.init yourself"
            )
        ready = threading.Event()
        failed: list[Exception] = []
        self._unused.clear()

        def keep() -> None:
            folder = OwnFolder("dodona-ray-")
            try:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    object_store_memory=80 * 2**20,  # the least: no object of size passes through it
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    _node_ip_address=_LOOPBACK,
                    _temp_dir=str(folder.path / "ray"),  # Ray lets everybody write to it
                )
            except Exception as error:
                failed.append(error)
            ready.set()
            if not failed:
                self._unused.wait()
            ray.shutdown()
            folder.remove()

        self._thread = threading.Thread(target=keep, name="dodona-ray", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            self._end()
            raise EngineSetupError(f"Ray does not start: {failed[0]}") from failed[0]

    def _end(self) -> None:
        self._unused.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None


_own_ray = _OwnRay()


def _initialised(ray: Any, num_cpus: int) -> contextlib.AbstractContextManager[None]:
    if ray.is_initialized() and not _own_ray.is_used:
        return contextlib.nullcontext()
    return _own_ray.used(ray, num_cpus)
