"""What layers with a short sliding window keep of KV blocks: much less than other layers do."""

from __future__ import annotations

from collections import OrderedDict


class WindowBlocks:
    """The storage of one group of layers that see fewer tokens back than the model's other layers.

    A request has one block table. Of its blocks, this group stores only those that a query can still see: a
    *window block* is attached to such a block. It is detached when no request needs it any more, and its room
    is needed. Until then, it can be found again together with the block, which the prefix cache knows.

    num_window_blocks must be enough for the most that all requests together can see; then there is always
    one left. All block ids here are those of `KVBlocks`, unless they are called window block ids.
    """

    def __init__(self, window: int, num_window_blocks: int, block_size: int) -> None:
        """window: most recent tokens that a query sees, itself included."""
        self.window = window
        self.num_window_blocks = num_window_blocks
        self._block_size = block_size
        self.reset()

    def reset(self) -> None:
        """Detach all; no request may use any."""
        self._free = list(range(self.num_window_blocks - 1, -1, -1))
        self._attached: dict[int, int] = {}
        self._users: dict[int, int] = {}
        # Attached without a user, the one that is unused for the longest first.
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def num_used(self) -> int:
        """Window blocks that requests use."""
        return len(self._users)

    def num_users(self, block_id: int) -> int:
        """How many requests use the block's window block."""
        return self._users.get(block_id, 0)

    def has(self, block_id: int) -> bool:
        """Whether a window block is attached."""
        return block_id in self._attached

    def first_needed(self, num_tokens: int) -> int:
        """Index, in a block table, of the first block that the query at position `num_tokens` sees."""
        return first_visible_block(self.window, num_tokens, self._block_size)

    def take(self, block_id: int) -> int | None:
        """Add a user. Returns the id of a window block that was attached for it, or None if there was one.

        Raises KeyError where all window blocks are in use.
        """
        users = self._users.get(block_id, 0)
        self._users[block_id] = users + 1
        if block_id in self._attached:
            if not users:
                del self._unused[block_id]
            return None
        if self._free:
            window_block = self._free.pop()
        else:
            unused, _ = self._unused.popitem(last=False)
            window_block = self._attached.pop(unused)
        self._attached[block_id] = window_block
        return window_block

    def drop(self, block_id: int) -> None:
        """Take a user off. Raises KeyError where there is none."""
        users = self._users[block_id] - 1
        if users:
            self._users[block_id] = users
        else:
            del self._users[block_id]
            self._unused[block_id] = None


def first_visible_block(window: int | None, position: int, block_size: int) -> int:
    """Index of the first block that the query at `position` sees (window None: all tokens)."""
    return 0 if window is None else max(0, position - window + 1) // block_size
