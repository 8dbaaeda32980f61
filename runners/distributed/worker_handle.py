"""One worker as the engine's process sees it: spoken to over a socket, watched and ended."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from dodona.runners.distributed.messages import Answer
from dodona.runners.distributed.outbox import Outbox

LOG_LINES = 30
"""How many lines of a worker's output are kept for errors."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker's process ended."""

    text: str
    """For errors; follows the worker's name."""
    by_itself: bool
    """Whether it ended for want of another rank, or in order: something else may be the cause."""


class WorkerHandle(ABC):
    """A worker in a process of this machine, or of another.

    machine: the address of its machine; None: this one. device: number of its GPU among those visible to it,
    where what started it chose one.
    """

    def __init__(
        self,
        rank: int,
        pid: int,
        connection: Connection[bytes, bytes],
        *,
        machine: str | None = None,
        device: int | None = None,
    ) -> None:
        self.rank = rank
        self.pid = pid
        self.device = device
        self.process = f"pid {pid}" if machine is None else f"pid {pid} on {machine}"
        """For errors."""
        self.connection = connection
        """For `multiprocessing.connection.wait`."""
        self._outbox = Outbox(connection)

    def send(self, message: bytes) -> bool:
        """Send a pickled message, without waiting for the worker to read it; False where it is known to be
        gone."""
        return self._outbox.send(message)

    def close(self) -> None:
        """Let go of the connection, with what is unsent. Idempotent."""
        self._outbox.close()

    def receive(self) -> Answer | None:
        """The next answer, waiting for it; None where the worker is gone."""
        try:
            answer: Answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return answer

    def is_lost(self) -> bool:
        """Whether the worker is known to be gone, though its connection does not show it."""
        return False

    @abstractmethod
    def dump_stack(self) -> None:
        """Ask for the worker's stack; it comes with its output, unless it is stopped."""

    @abstractmethod
    def is_stopped(self) -> bool:
        """Whether the process was stopped by a signal."""

    @abstractmethod
    def log_tail(self) -> Sequence[str]:
        """The last lines that the worker printed."""

    @abstractmethod
    def end(self, patience_s: float) -> Ending:
        """Wait for the process to end by itself, kill it otherwise, and let go of all that it held."""


@dataclass(frozen=True, slots=True)
class Launched:
    """Workers that were started together."""

    workers: Sequence[WorkerHandle]
    """By rank."""
    store: str
    """Where the ranks find each other: a file that all of them reach, or tcp://HOST:PORT."""


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine was stopped by a signal."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False
