"""KV blocks: which are in use, and which hold a prefix that another request can share."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def root_hash(adapter_key: bytes = b"") -> bytes:
    """The hash that a first block's hash is chained to: KV belongs to one adapter or (no key) to none."""
    return blake2b(adapter_key, digest_size=16).digest()


def block_hash(previous: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block: of its tokens and, by `previous`, of all before it."""
    # Cryptographic, since a collision would let one request read another's KV.
    return blake2b(previous + array("q", token_ids).tobytes(), digest_size=16).digest()


class KVBlocks:
    """Block ids 0 .. num_blocks-1. A block is in use (by one request or several) or free.

    A free block keeps its content, and can be found by its hash, until it is handed out again; the one
    unused for the longest goes first. Every operation is O(1) per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._users = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by hash, in use or free."""
        return len(self._by_hash)

    def num_users(self, block_id: int) -> int:
        """How many requests use the block."""
        return self._users[block_id]

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest prefix of `hashes` that is cached; to use them, `share` them."""
        found = []
        for value in hashes:
            block_id = self._by_hash.get(value)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def get(self, value: bytes) -> int | None:
        """The cached block with this hash; to use it, `share` it."""
        return self._by_hash.get(value)

    def can_allocate(self, count: int, shared: Sequence[int] = ()) -> bool:
        """Whether `count` blocks can be handed out after `shared` ones were taken into use."""
        revived = sum(not self._users[block_id] for block_id in shared)
        return count + revived <= len(self._free)

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a user to each of these blocks, which `find` gave."""
        for block_id in block_ids:
            if not self._users[block_id]:
                del self._free[block_id]
            self._users[block_id] += 1

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks with unknown content; the caller made sure with `can_allocate`."""
        return [self.allocate_one() for _ in range(count)]

    def allocate_one(self) -> int:
        """Hand out one block; raises KeyError if none is free."""
        block_id, _ = self._free.popitem(last=False)
        value = self._hashes[block_id]
        if value is not None:
            del self._by_hash[value]
            self._hashes[block_id] = None
        self._users[block_id] = 1
        return block_id

    def remember(self, block_id: int, value: bytes) -> None:
        """Let `find` see this full block, which is in use. Of equal blocks, the first known stays."""
        if value not in self._by_hash:
            self._by_hash[value] = block_id
            self._hashes[block_id] = value

    def forget(self) -> None:
        """Let `find` see none of the blocks, whose content is void."""
        self._by_hash.clear()
        self._hashes = [None] * self.num_blocks

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one user off each block of a request's table; the table's end is reused before its beginning.

        Raises ValueError for a block that is free already.
        """
        for block_id in reversed(block_ids):
            users = self._users[block_id] - 1
            if users < 0:
                raise ValueError(f"KV block {block_id} is free already")
            self._users[block_id] = users
            if users == 0:
                self._free[block_id] = None
                if self._hashes[block_id] is None:  # nobody can find it, so it goes before the cached ones
                    self._free.move_to_end(block_id, last=False)
