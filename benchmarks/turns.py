"""Processes that stay alive and work in turns, so that each has the GPU to itself while it is measured.

`wait_for_turn` is the side of such a process: it prints a line and waits for one. `Player` is the side of the
program that gives turns, `alternate` what it does with several.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

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


def alternate(
    commands: Mapping[str, Sequence[str]],
    environments: Mapping[str, Mapping[str, str]],
    streamed: Sequence[bool],
    *,
    patience: float | None = None,
) -> bool:
    """Run the commands side by side; for each workload they take turns: A B … to warm up, A B … B A, and
    A B … again where it is streamed. Returns whether all succeeded.

    streamed: of each workload.
    patience: seconds for the starts. What has not started by then is ended and left out; None: no limit.
    """
    for side, full in commands.items():
        print(f"[{side.upper()}] {' '.join(full[1:])}", flush=True)
    players = {side: Player(full, environments[side]) for side, full in commands.items()}
    late = []
    try:
        with ThreadPoolExecutor(len(players)) as pool:  # all start at once, and none may wait for a reader
            starts = {side: pool.submit(player.wait) for side, player in players.items()}
            wait(starts.values(), timeout=patience)
            late = [side for side, start in starts.items() if not start.done()]
            for side in late:
                print(f"error: {side.upper()} has not started in {patience} s", file=sys.stderr, flush=True)
                players[side].kill()
            waiting = {side: start.result() for side, start in starts.items() if side not in late}
        order = list(waiting)
        for streams in streamed:
            for side in [*order, *order, *reversed(order), *(order if streams else ())]:
                if not waiting[side]:
                    print(f"error: {side.upper()} ended before its turn", file=sys.stderr)
                    return False
                waiting[side] = players[side].play()
        return not late and not any(players[side].finish() for side in order)
    finally:
        for player in players.values():
            player.kill()
