"""What runs in Ray's processes: a worker, and on each machine what watches its workers."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dodona.runners.distributed.connecting import connect, hang_up, wait_for_end
from dodona.runners.distributed.own_folder import OwnFolder
from dodona.runners.distributed.worker import ENDED_WITH_THE_ENGINE, serve
from dodona.runners.distributed.worker_handle import LOG_LINES, is_stopped

GONE_S = 10.0
"""Seconds in which a killed process must be gone."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Where a worker finds the engine's process."""

    host: str
    port: int
    key: bytes
    environment: Mapping[str, str]
    """Variables that workers take over."""
    directory: str
    """Where it works: relative names of models and folders are looked for there, on machines that have it."""


class WorkerActor:
    """A worker's process. log: the file that has what it prints."""

    def __init__(self, log: str) -> None:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's, which then stops its workers
        faulthandler.register(signal.SIGUSR1, file=2)  # the engine asks where a worker hangs

    def process(self) -> tuple[int, int | None]:
        """The process's id, and the number among the visible GPUs of the one that Ray gave it."""
        import ray

        given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return os.getpid(), visible_number(str(given[0])) if given else None

    def serve(self, engine: Engine, rank: int, address: str | None) -> None:
        """Carry out messages until `Stop`, or until the engine has closed the connection.

        address: this machine's, where there are ranks on others: the exchange with them listens there.
        """
        os.environ.update(engine.environment)
        with contextlib.suppress(OSError):
            os.chdir(engine.directory)
        if address is not None:
            os.environ.update(interface_variables(address))
        connection = connect(engine.host, engine.port, engine.key, rank)
        threading.Thread(target=_end_after, args=(connection,), daemon=True).start()
        try:
            serve(connection)
        finally:
            hang_up(connection)


class MachineActor:
    """Watches the workers of one machine, and has the folder with what they print."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._folder = OwnFolder("dodona-workers-")
        self._processes: dict[int, int] = {}
        """By id, a descriptor: an id may come to be another process's."""

    def log(self, rank: int) -> str:
        """The file for what a worker prints."""
        return str(self._folder.path / f"log-{rank}")

    def watch(self, pid: int) -> None:
        """Watch a worker's process."""
        self._processes[pid] = os.pidfd_open(pid)

    def log_tail(self, rank: int) -> Sequence[str]:
        """The last lines that a worker printed."""
        with Path(self.log(rank)).open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip() for line in deque(file, LOG_LINES)]

    def is_stopped(self, pid: int) -> bool:
        """Whether a worker was stopped by a signal."""
        return is_stopped(pid)

    def dump_stack(self, pid: int) -> None:
        """Let a worker print its stack."""
        self._signal(pid, signal.SIGUSR1)

    def is_gone(self, pid: int, within_s: float) -> bool:
        """Whether a worker has ended, within so many seconds."""
        return bool(select.select([self._processes[pid]], [], [], within_s)[0])

    def kill(self, pid: int) -> None:
        """Kill a worker, and wait until it is gone."""
        self._signal(pid, signal.SIGKILL)
        self.is_gone(pid, GONE_S)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.remove()

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._processes[pid], number)


def _end_after(connection: Connection) -> None:
    """End this process, whatever it is doing, soon after its connection: Ray leaves it where it can't be told
    that the engine is gone."""
    wait_for_end(connection)
    time.sleep(GONE_S)
    os._exit(ENDED_WITH_THE_ENGINE)


def visible_number(name: str) -> int:
    """The number of a GPU among the visible ones, from Ray's name for it: the system's number, or what
    `CUDA_VISIBLE_DEVICES` calls it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",").index(name) if visible else int(name)


def interface_variables(address: str) -> Mapping[str, str]:
    """The variables that are not set by which gloo and NCCL listen at an address of this machine.

    Raises RuntimeError where no interface has the address.
    """
    import psutil

    unset = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    for interface, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            exact = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
            return {name: exact[name] for name in unset}
    if unset:
        raise RuntimeError(
            f"no network interface has the address {address}, by which Ray knows this machine; "
            f"set {' and '.join(unset)}"
        )
    return {}
