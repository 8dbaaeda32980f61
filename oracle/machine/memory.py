"""How much memory the machine has, and how much of it processes can still take."""

from __future__ import annotations

import re
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def host_memory() -> float | None:
    """GiB that the machine has, or less where a control group sets a limit; None: not known."""
    total = _meminfo("MemTotal")
    limit = _number(_GROUP / "memory.max")
    known = [size for size in (total, limit) if size is not None]
    return min(known) / (1 << 30) if known else None


def available_memory() -> int | None:
    """Bytes that processes can still take: MemAvailable, or less where a control group sets a limit; None:
    not known. What a group's files take in the page cache can be had again."""
    available = _meminfo("MemAvailable")
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if limit is None or used is None:
        return available
    left = max(0, limit - used + _cached_files())
    return left if available is None else min(available, left)


def _cached_files() -> int:
    try:
        text = (_GROUP / "memory.stat").read_text()
    except OSError:
        return 0
    return sum(int(size) for size in re.findall(r"^(?:active|inactive)_file (\d+)$", text, re.MULTILINE))


def _meminfo(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
