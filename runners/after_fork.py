"""What must happen in a forked child to objects that belong to the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class LeftToParent(Protocol):
    """An object with locks, threads or open files, which a fork copies."""

    def leave_to_parent(self) -> None:
        """Called in the child, where no thread but the one that forked goes on."""


_objects: weakref.WeakKeyDictionary[LeftToParent, None] = weakref.WeakKeyDictionary()


def leave_after_fork(owner: LeftToParent) -> None:
    """Have `owner.leave_to_parent()` called in each forked child, in the order of these calls."""
    _objects[owner] = None


def _after_fork_in_child() -> None:
    for owner in list(_objects):
        owner.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
