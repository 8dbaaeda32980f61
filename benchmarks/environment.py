"""Where and with what a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMIT_VARIABLE = "DODONA_COMMIT"
"""Names the commit where the tree that is measured has no git beside it."""


def describe() -> dict[str, str]:
    """GPU (or processor), versions, commit and time; "unknown" where it can't be found out."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"none ({platform.machine()} CPU)"
    return {
        "gpu": gpu,
        "driver": _driver(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": _version("triton"),
        "commit": commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit measured, with "+" where tracked files differ from it."""
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno", "--", "runners", "kernels", "oracle") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _driver() -> str:
    try:
        found = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none"
    return next((word for word in found.split() if word[0].isdigit() and word.count(".") >= 1), "unknown")
