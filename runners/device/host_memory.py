"""How many bytes a host has left for KV blocks, where it computes the steps itself."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dodona.oracle.machine.memory import available_memory

_UNKNOWN: Final = 8 << 30
"""Bytes that a host is taken to have left where it doesn't say."""


def share_of_host(utilization: float, ranks: int, *, taken: int = 0) -> int:
    """`utilization` of a rank's part of the bytes that the system, or the control group, has left: each of
    the `ranks` that share it, which run at the same time, has an equal one.

    taken: bytes of them that something else will have taken by then."""
    return int(_part(ranks, taken) * utilization)


def left_beside(largest_step: Callable[[], None], utilization: float, ranks: int) -> int:
    """`share_of_host` before `largest_step`, which is run once. The step takes its memory from the rest of
    the rank's part: the share is smaller only where less is left there beside the measured growth of the
    resident set. So what all ranks and their steps take is never more than the host has."""
    part, before = _part(ranks), _reset_peak()
    largest_step()
    return min(int(part * utilization), part - max(0, _status_bytes("VmHWM") - before))


def _part(ranks: int, taken: int = 0) -> int:
    return max(0, _left() - taken) // ranks


def _left() -> int:
    available = available_memory()
    return _UNKNOWN if available is None else available


def _reset_peak() -> int:
    """Reset the measured peak of the resident set, where the system allows it; returns the present size.

    Where it doesn't, the peak is that since the process began, and KV may get less than it could.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    """A size of /proc/self/status; 0 on systems without that file."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
