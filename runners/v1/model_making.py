"""One thread at a time makes models with transformers.

transformers changes what holds for the whole process while it makes a model (`PreTrainedModel.tie_weights`,
torch's default dtype), and puts it back afterwards. Of two threads that do so at once, one can leave the
other's change in place for good: no model would tie its weights any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dodona.runners.after_fork import leave_after_fork


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.RLock()

    def leave_to_parent(self) -> None:
        """A forked child makes models of its own, whoever made one in its parent."""
        self.lock = threading.RLock()


_turn = _Turn()
leave_after_fork(_turn)


@contextmanager
def making_a_model() -> Iterator[None]:
    """Wait until no other thread of this process makes a model."""
    with _turn.lock:
        yield
