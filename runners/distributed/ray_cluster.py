"""The Ray that workers are started by: as the caller has initialised it, a cluster's, or one of our own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from dodona.runners.distributed.own_folder import OwnFolder
from dodona.runners.errors import EngineSetupError

EXTRA = "ray"
"""The optional dependency of pyproject.toml that brings Ray."""

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of the cluster to join, Ray's own; "local" and nothing: none."""

_OWN_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray of our own listens on the loopback interface only, as it does by itself on Windows and macOS, and
reports nothing to its makers."""

LOOPBACK = "127.0.0.1"


def import_ray() -> Any:
    """The package. Raises EngineSetupError where it is not installed."""
    if _cluster() is None:
        os.environ.update({name: value for name, value in _OWN_RAY.items() if name not in os.environ})
    try:
        import ray
    except ImportError as error:
        raise EngineSetupError(
            "Ray's workers need the package ray, which is not installed: "
            f"pip install 'dodona[{EXTRA}]', or set distributed_executor_backend to 'mp'"
        ) from error
    return ray


def initialised(ray: Any, num_cpus: int) -> contextlib.AbstractContextManager[None]:
    """Ray is there within the context. num_cpus: CPUs of our own Ray.

    Uses Ray as this process has initialised it, or else joins the cluster at `RAY_ADDRESS`, or else starts
    Ray on this machine alone. What it began ends with its last user. Raises EngineSetupError.
    """
    if ray.is_initialized() and not _held_ray.is_used:
        if ray.util.client.ray.is_connected():
            raise EngineSetupError(
                "Ray was initialised as a client of a cluster (ray://…); workers connect to this process, so "
                "start it on a machine of the cluster, with address='auto'"
            )
        return contextlib.nullcontext()
    return _held_ray.used(ray, num_cpus)


class _HeldRay:
    """Ray that this process starts or joins, and leaves with its last user.

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
        """Whether Ray was initialised here."""
        with self._lock:
            return self._users > 0

    def _start(self, ray: Any, num_cpus: int) -> None:
        address = _cluster()
        if address is not None and address.startswith("ray://"):
            raise EngineSetupError(
                f"{ADDRESS}={address}: workers connect to this process, so start it on a machine of the "
                f"cluster, with {ADDRESS}=auto"
            )
        if address is None and ray.util.get_node_ip_address() != LOOPBACK:
            raise EngineSetupError(
                "Ray was imported before, and would listen beyond the loopback interface: set "
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 first, or call ray.init yourself"
            )
        ready = threading.Event()
        failed: list[Exception] = []
        self._unused.clear()

        def keep() -> None:
            with contextlib.ExitStack() as stack:
                options: dict[str, Any] = {"address": address}
                if address is None:
                    folder = OwnFolder("dodona-ray-")
                    stack.callback(folder.remove)
                    options = {
                        "address": "local",
                        "num_cpus": num_cpus,
                        "object_store_memory": 80 * 2**20,  # the least: no object of size passes through it
                        "include_dashboard": False,
                        "_node_ip_address": LOOPBACK,
                        "_temp_dir": str(folder.path / "ray"),  # Ray lets everybody write to it
                    }
                try:
                    ray.init(**options, log_to_driver=False, configure_logging=False)
                except Exception as error:
                    failed.append(error)
                ready.set()
                if not failed:
                    self._unused.wait()
                ray.shutdown()

        self._thread = threading.Thread(target=keep, name="dodona-ray", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            self._end()
            where = "start" if address is None else f"join the cluster at {ADDRESS}={address}"
            raise EngineSetupError(f"Ray does not {where}: {_said(failed[0])}") from failed[0]

    def _end(self) -> None:
        self._unused.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None


def _said(error: BaseException) -> str:
    """What an error and those behind it say: Ray's own often says that something failed, and not why."""
    said = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    root = str(error).strip().rpartition("\n")[2]
    return said if root in said else f"{said}: {root}"


def _cluster() -> str | None:
    address = os.environ.get(ADDRESS)
    return None if address in (None, "", "local") else address


_held_ray = _HeldRay()
