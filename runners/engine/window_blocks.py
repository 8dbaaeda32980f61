"""What no query sees any more behind a sliding window, given back while its request runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from dodona.runners.engine.kv_blocks import KVBlocks
from dodona.runners.engine.request import Request


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


class Windows:
    """The sliding windows of a model: what requests hold of KV blocks and of window blocks.

    `forget_unseen` must be called before a request computes tokens, in a block that it is new in; `attach`,
    once the tokens are counted.
    """

    def __init__(self, blocks: KVBlocks, window: int | None, groups: Iterable[tuple[int, int]]) -> None:
        """
        window: most recent tokens that any layer's query sees, itself included; None for all.
        groups: for each group with window blocks, its window and how many window blocks there are.
        """
        self.groups = tuple(WindowBlocks(w, count, blocks.block_size) for w, count in groups)
        self.slide = window is not None or bool(self.groups)
        """Whether there is anything to do here."""
        self._blocks = blocks
        self._window = window
        self._attached: list[tuple[int, int, int]] = []

    def reset(self) -> None:
        """Detach all window blocks; no request may use any."""
        for group in self.groups:
            group.reset()

    def take_attached(self) -> Sequence[tuple[int, int, int]]:
        """The window blocks that were attached since the last call: `SchedulerOutput.window_blocks`."""
        attached, self._attached = self._attached, []
        return attached

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest cached prefix. Only those that a query after it sees must be there, in
        each group; the ids of blocks before, `num_unseen` of them, mean nothing."""
        size = self._blocks.block_size
        found = [self._blocks.get(value) for value in hashes]
        windows = [self._window, *(group.window for group in self.groups)]
        runs = [0] * len(windows)
        """For each group, how many blocks are there without a gap, up to the last one looked at."""
        longest = 0
        for count, block_id in enumerate(found, 1):
            there = [block_id is not None] * len(windows)
            if block_id is not None:
                there[1:] = [group.has(block_id) for group in self.groups]
            runs = [run + 1 if one else 0 for run, one in zip(runs, there, strict=True)]
            seen = [count - first_visible_block(window, count * size, size) for window in windows]
            if all(run >= needed for run, needed in zip(runs, seen, strict=True)):
                longest = count
        return [block_id or 0 for block_id in found[:longest]]

    def num_unseen(self, num_tokens: int) -> int:
        """How many leading blocks the query at position `num_tokens` does not see in any layer."""
        return first_visible_block(self._window, num_tokens, self._blocks.block_size)

    def begin(self, request: Request) -> None:
        """A request got blocks; what it found in the prefix cache is counted as computed."""
        start = request.num_computed_tokens
        request.window_spans = [(first, first) for first in (g.first_needed(start) for g in self.groups)]
        self.attach(request, start)

    def attach(self, request: Request, num_tokens: int) -> None:
        """Give the request window blocks up to its token `num_tokens`, for which it has blocks."""
        end = self._blocks.blocks_for(num_tokens)
        for number, group in enumerate(self.groups):
            first, done = request.window_spans[number]
            for block_id in request.block_ids[done:end]:
                window_block = group.take(block_id)
                if window_block is not None:
                    self._attached.append((number, block_id, window_block))
            request.window_spans[number] = (first, max(done, end))

    def forget_unseen(self, request: Request) -> None:
        """Give back what the request's next query does not see."""
        start = request.num_computed_tokens
        first = self.num_unseen(start)
        if first > request.num_forgotten_blocks:
            self._blocks.release(request.block_ids[request.num_forgotten_blocks : first])
            request.num_forgotten_blocks = first
        for number, group in enumerate(self.groups):
            begin, end = request.window_spans[number]
            first = group.first_needed(start)
            for block_id in request.block_ids[begin:first]:
                group.drop(block_id)
            request.window_spans[number] = (first, end)

    def end(self, request: Request) -> None:
        """The request gives all its window blocks back."""
        for group, (first, end) in zip(self.groups, request.window_spans, strict=True):
            for block_id in reversed(request.block_ids[first:end]):
                group.drop(block_id)
        request.window_spans = []
