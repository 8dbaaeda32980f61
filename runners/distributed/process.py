"""Workers in processes that the engine's process starts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from dodona.runners.after_fork import leave_after_fork
from dodona.runners.distributed import worker_log
from dodona.runners.distributed.worker_handle import LOG_LINES, Ending, Launched, WorkerHandle, is_stopped

logger = logging.getLogger("dodona.worker")


@contextlib.contextmanager
def worker_processes(count: int, folder: Path) -> Iterator[Launched]:
    """Processes for the ranks 0 .. count-1; the caller ends them. See `workers.Launch`."""
    started: list[WorkerProcess] = []
    try:
        started.extend(WorkerProcess(rank) for rank in range(count))
    except BaseException:
        for process in started:
            process.end(0.0)
        raise
    yield Launched(started, str(folder / "store"))


class WorkerProcess(WorkerHandle):
    """A worker of its own interpreter, which shares nothing with this process but a socket and two pipes.

    It is not forked, since this process may have threads and a CUDA context. It imports what this process can
    import. What it prints is kept, the last `LOG_LINES` lines, and goes to the logger `dodona.worker`: its
    warnings as warnings, all else at INFO.
    """

    def __init__(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        life, held = os.pipe()
        self._life: int | None = held
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # a file of the working directory must not stand in for a module
                    "-m",
                    "dodona.runners.distributed.worker",
                    str(theirs.fileno()),
                    str(life),
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), life),
                start_new_session=True,  # the terminal's Ctrl-C is for this process alone
            )
        os.close(life)
        super().__init__(rank, self._process.pid, Connection(ours.detach()))
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._reader = threading.Thread(target=self._read_log, name=f"dodona-log-{rank}", daemon=True)
        self._reader.start()
        leave_after_fork(self)

    def dump_stack(self) -> None:
        """See `WorkerHandle.dump_stack`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)

    def is_stopped(self) -> bool:
        """See `WorkerHandle.is_stopped`."""
        return is_stopped(self.pid)

    def log_tail(self) -> Sequence[str]:
        """The last lines that the worker printed."""
        return tuple(self._log)

    def end(self, patience_s: float) -> Ending:
        """See `WorkerHandle.end`."""
        try:
            status = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self.close()
        if self._life is not None:
            os.close(self._life)
            self._life = None
        self._reader.join(1.0)
        return _ending(status)

    def leave_to_parent(self) -> None:
        """In a child process after a fork: a worker ends when no process holds the other ends of these."""
        with contextlib.suppress(OSError):
            self.connection.close()
        if self._life is not None:
            os.close(self._life)
            self._life = None

    def _read_log(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for line in output:
                text = line.decode("utf-8", "replace").rstrip()
                self._log.append(text)
                level, said = worker_log.parse(text)
                logger.log(level, "rank %d: %s", self.rank, said)


def _ending(status: int) -> Ending:
    if status >= 0:
        return Ending(f"ended with status {status}", by_itself=True)
    name = signal.Signals(-status).name
    text = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    # NCCL ends a process by SIGABRT when another rank is gone.
    return Ending(text, by_itself=name == "SIGABRT")
