"""Temporary folders that end with their process; that of a killed one goes when the next is made."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from dodona.runners.after_fork import leave_after_fork

_OWNER = "owner"
"""File that the process which made the folder keeps locked. The system unlocks it when that process ends."""


class OwnFolder:
    """A new temporary folder of this process. Folders with the same prefix whose process is gone are
    removed."""

    def __init__(self, prefix: str) -> None:
        _remove_abandoned(prefix)
        self.path, self._descriptor = _make(prefix)
        leave_after_fork(self)

    def remove(self) -> None:
        """Remove the folder with all that is in it. Idempotent."""
        if self._descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def leave_to_parent(self) -> None:
        """In a child process after a fork: the folder is the parent's, and ends with it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _make(prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return folder, descriptor
        os.close(descriptor)  # another process took it for an abandoned one before it was locked


def _remove_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # locked, another user's, or gone by now
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
