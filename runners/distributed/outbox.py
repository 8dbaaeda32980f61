"""Messages on their way to a worker: who sends them doesn't wait for the worker to read.

A worker reads its next message once it has answered the one before, and an answer is sent once the engine
reads. If the engine waited until a message has left, both could wait for one another; and for a worker that
hangs it would wait without limit.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from multiprocessing.connection import Connection

DIRECT = 64 << 10
"""Most bytes of a message that the caller's thread sends: for more, a writable socket has room."""

_PATIENCE_S = 5.0


class Outbox:
    """Sends messages over a connection, in their order. One thread at a time may call it; answers may be read
    meanwhile."""

    def __init__(self, connection: Connection[bytes, bytes]) -> None:
        self._connection = connection
        self._room = select.poll()
        self._room.register(connection.fileno(), select.POLLOUT)
        self._changed = threading.Condition()
        self._unsent: deque[bytes] = deque()
        """Guarded by `_changed`, as `_ended`. The first one is being sent."""
        self._ended = False
        self._thread: threading.Thread | None = None

    def send(self, message: bytes) -> bool:
        """Send a message, now or later; False where the worker is known to be gone."""
        with self._changed:
            if self._ended:
                return False
            if self._unsent or len(message) > DIRECT or not self._room.poll(0):
                self._unsent.append(message)
                self._changed.notify()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="dodona-outbox", daemon=True)
                    self._thread.start()
                return True
        try:
            self._connection.send_bytes(message)
        except (OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """Give up what is unsent, and close the connection. Idempotent."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        with contextlib.suppress(OSError):
            if self._thread is not None:  # wakes it, where it waits for room
                with socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
                    ours.shutdown(socket.SHUT_RDWR)
                self._thread.join(_PATIENCE_S)
            self._connection.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent or self._ended)
                if self._ended:
                    return
                message = self._unsent[0]
            try:
                self._connection.send_bytes(message)
            except (OSError, ValueError):
                with self._changed:
                    self._ended = True
                return
            with self._changed:
                self._unsent.popleft()
