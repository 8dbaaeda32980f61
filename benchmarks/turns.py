"""Processes that stay alive and work in turns, so that each has the GPU to itself while it is measured.

`wait_for_turn` is the side of such a process: it prints a line and waits for one. `Player` is the side of the
program that gives turns.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

WAITING = "waiting for a turn"
"""The line that a process prints before each of its turns."""


def wait_for_turn() -> None:
    """Say that this process waits, and wait until it is given a turn. Raises RuntimeError where nobody gives
    turns any more."""
    print(WAITING, flush=True)
    if not sys.stdin.readline():
        raise RuntimeError("the program that gave turns has ended")


class Player:
    """A process that waits for turns. What it prints goes to this process's stdout.

    Args:
        command: of the process.
        environment: its variables.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def wait(self) -> bool:
        """Wait until it waits for its next turn; False where it ended instead."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.rstrip("\n") == WAITING:
                return True
            print(line, end="", flush=True)
        return False

    def play(self) -> bool:
        """Give it a turn, and wait for the turn's end; as `wait`."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.wait()

    def finish(self) -> int:
        """Its exit status, once it has ended."""
        self.wait()
        return self._process.wait()

    def kill(self) -> None:
        """End it, where it hasn't."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
