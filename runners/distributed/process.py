"""One worker's process as the engine's process sees it: started, spoken to, watched and ended."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection

from dodona.runners.distributed.messages import Answer

logger = logging.getLogger("dodona.worker")

LOG_LINES = 30
"""How many lines of a worker's output are kept for errors."""


class WorkerProcess:
    """A worker of its own interpreter, which shares nothing with this process but a socket and two pipes.

    It is not forked, since this process may have threads and a CUDA context. It imports what this process can
    import. What it prints is kept, the last `LOG_LINES` lines, and goes to the logger `dodona.worker`.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
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
        self.connection: Connection[bytes, bytes] = Connection(ours.detach())
        """For `multiprocessing.connection.wait`."""
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._reader = threading.Thread(target=self._read_log, name=f"dodona-log-{rank}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, message: bytes) -> bool:
        """Send a pickled message; False where the worker is gone."""
        try:
            self.connection.send_bytes(message)
        except (OSError, ValueError):
            return False
        return True

    def receive(self) -> Answer | None:
        """The next answer, waiting for it; None where the worker is gone."""
        try:
            answer: Answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return answer

    def dump_stack(self) -> None:
        """Ask for the worker's stack; it comes with its output, unless it is stopped."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)

    def is_stopped(self) -> bool:
        """Whether the process was stopped by a signal."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8") as file:
                return file.read().rpartition(")")[2].split()[0] in ("T", "t")
        except OSError:
            return False

    def log_tail(self) -> Sequence[str]:
        """The last lines that the worker printed."""
        return tuple(self._log)

    def end(self, patience_s: float) -> int:
        """Wait for the process to end by itself, kill it otherwise, and let go of all that it held.

        Returns its exit status; a negative one is the signal that ended it.
        """
        try:
            status = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        with contextlib.suppress(OSError):
            self.connection.close()
        if self._life is not None:
            os.close(self._life)
            self._life = None
        self._reader.join(1.0)
        return status

    def _read_log(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for line in output:
                text = line.decode("utf-8", "replace").rstrip()
                self._log.append(text)
                logger.info("rank %d: %s", self.rank, text)
