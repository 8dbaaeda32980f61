"""Two machines with Ray on this one: each has processes, a network and temporary folders of its own.

A switch connects them. Linux namespaces make them, which takes root. Model files are the same on both, as on
machines with a shared file system.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FIRST, SECOND = "10.201.7.1", "10.201.7.2"
PORT = 6379
PORTS = ("to-first", "to-second")


def lacks_machines() -> str | None:
    """Why there can't be two machines here; None where there can."""
    if importlib.util.find_spec("ray") is None:
        return "needs Ray: pip install 'dodona[ray]'"
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return "needs root, and the commands ip and unshare, to make network namespaces"
    name = f"dodona-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None if made else "needs the right to make network namespaces"


@dataclass(frozen=True)
class Machines:
    """The first has Ray's head and the engine."""

    spaces: tuple[str, str]
    switch: str
    folders: tuple[Path, Path]
    """Temporary folders; neither machine sees the other's."""
    environment: Mapping[str, str]

    def start(self, command: Sequence[str], directory: Path | None = None) -> subprocess.Popen[str]:
        """A program on the first machine, with pipes; its errors go where this process's go."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[0], *command],
            env={**self.environment, "TMPDIR": str(self.folders[0])},
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def listening(self) -> set[str]:
        """Addresses at which processes of the first machine listen, as /proc shows them."""
        shown = subprocess.run(
            ["ip", "netns", "exec", self.spaces[0], "cat", "/proc/net/tcp", "/proc/net/tcp6"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {line.split()[1] for line in shown.splitlines() if line.split()[3] == "0A"}

    def processes(self, machine: int) -> Mapping[int, str]:
        """By id on this one, the commands of a machine's processes."""
        found: dict[int, str] = {}
        for pid in map(int, _ip("netns", "pids", self.spaces[machine]).split()):
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def cut_cable(self) -> None:
        """Nothing reaches the other machine any more, and nobody is told."""
        _ip("-n", self.switch, "link", "set", PORTS[1], "nomaster")


@contextmanager
def machines() -> Iterator[Machines]:
    """Two machines with one CPU each, as Ray counts them."""
    name = f"dodona-{secrets.token_hex(4)}"
    spaces, switch = (f"{name}-a", f"{name}-b"), f"{name}-s"
    folders = (Path(tempfile.mkdtemp(prefix="ray-a-")), Path(tempfile.mkdtemp(prefix="ray-b-")))
    own = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # left by Ray on the loopback interface, which has one machine
    environment = {
        **{name: value for name, value in os.environ.items() if name != own},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_ADDRESS": f"{FIRST}:{PORT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    made = Machines(spaces, switch, folders, environment)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "ports", "type", "bridge")
        _ip("-n", switch, "link", "set", "ports", "up")
        for space, port, address in zip(spaces, PORTS, (FIRST, SECOND), strict=True):
            _ip("netns", "add", space)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "cable", "netns", space)
            _ip("-n", switch, "link", "set", port, "up", "master", "ports")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                _ip("-n", space, "link", "set", link, "up")
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folders[0]}/ray"]
        _ray(made, 0, [*head, f"--node-ip-address={FIRST}"])
        joins = [f"--address={FIRST}:{PORT}", f"--node-ip-address={SECOND}"]
        _ray(made, 1, joins)
        _wait_for_both(made)
        yield made
    finally:
        for space in (*spaces, switch):
            with suppress(subprocess.CalledProcessError):
                for pid in map(int, _ip("netns", "pids", space).split()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                _ip("netns", "del", space)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def _ray(made: Machines, machine: int, arguments: Sequence[str]) -> None:
    """Start Ray; the second machine ends with its first process, which Ray's command is."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
    command += ["--num-cpus=1", "--object-store-memory=80000000", "--block"]
    own, other = made.folders[machine], made.folders[1 - machine]
    hide = f'mount -t tmpfs none "{other}"; exec "$@"'
    with (own / "log").open("w") as log:
        subprocess.Popen(
            ["ip", "netns", "exec", made.spaces[machine], "unshare", "--mount", "--pid", "--fork",
             "--mount-proc", "--kill-child", "sh", "-c", hide, "sh", *command],
            env={name: value for name, value in {**made.environment, "TMPDIR": str(own)}.items()
                 if name != "RAY_ADDRESS"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _wait_for_both(made: Machines, limit_s: float = 60.0) -> None:
    ask = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        program = made.start([sys.executable, "-c", ask])
        if program.communicate()[0].strip().endswith("2"):
            return
        time.sleep(0.5)
    logs = [(folder / "log").read_text() for folder in made.folders]
    raise RuntimeError("Ray's machines did not come together: " + "\n".join(logs))
