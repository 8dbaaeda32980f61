"""The environment of a child interpreter that imports what this one can import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def child_environment(*folders: Path, **changes: str) -> dict[str, str]:
    """This process's environment with `changes`. PYTHONPATH holds `folders`, then all of `sys.path`: the
    packages may be installed, or may be on the parent's PYTHONPATH only.
    """
    path = dict.fromkeys([*map(str, folders), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **changes}
