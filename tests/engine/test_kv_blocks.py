"""KV blocks against a plain model of them: lists, and searches through everything."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dodona.runners.engine.kv_blocks import KVBlocks, block_hash, root_hash

NUM_BLOCKS = 6


class Blocks(RuleBasedStateMachine):
    """Tables take and give back blocks; contents are small integers, hashed to bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = KVBlocks(NUM_BLOCKS, 4)
        self.tables: list[list[int]] = []
        self.content: dict[int, int | None] = dict.fromkeys(range(NUM_BLOCKS))
        self.free = list(range(NUM_BLOCKS))
        """In the order in which they are to be handed out."""

    def users(self) -> Counter[int]:
        return Counter(block for table in self.tables for block in table)

    def known(self, value: int) -> int | None:
        return next((block for block, content in self.content.items() if content == value), None)

    @rule(count=st.integers(0, NUM_BLOCKS))
    def allocate(self, count: int) -> None:
        assert self.blocks.can_allocate(count) == (count <= len(self.free))
        if count > len(self.free):
            return
        expected, self.free = self.free[:count], self.free[count:]
        assert self.blocks.allocate(count) == expected
        for block in expected:
            self.content[block] = None
        self.tables.append(expected)

    @rule(values=st.lists(st.integers(0, 4), unique=True, max_size=4), extra=st.integers(0, 3))
    def share(self, values: list[int], extra: int) -> None:
        expected = []
        for value in values:
            if self.known(value) is None:
                break
            expected.append(self.known(value))
        found = self.blocks.find(bytes([value]) for value in values)
        assert found == expected
        revived = [block for block in found if not self.users()[block]]
        assert self.blocks.can_allocate(extra, found) == (extra + len(revived) <= len(self.free))
        self.blocks.share(found)
        self.free = [block for block in self.free if block not in revived]
        self.tables.append(found)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), value=st.integers(0, 4))
    def remember(self, data: st.DataObject, value: int) -> None:
        block = data.draw(st.sampled_from([block for table in self.tables for block in table]))
        if self.content[block] is not None:
            return
        self.blocks.remember(block, bytes([value]))
        if self.known(value) is None:
            self.content[block] = value

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.blocks.release(table)
        left = self.users()
        for block in reversed(table):
            if not left[block]:
                # Without content it is handed out first, else last.
                self.free.insert(0 if self.content[block] is None else len(self.free), block)

    @rule()
    def forget(self) -> None:
        self.blocks.forget()
        self.content = dict.fromkeys(self.content)

    @invariant()
    def same_books(self) -> None:
        users = self.users()
        assert [self.blocks.num_users(block) for block in range(NUM_BLOCKS)] == [
            users[block] for block in range(NUM_BLOCKS)
        ]
        assert self.blocks.num_free == len(self.free)
        assert self.blocks.num_cached == sum(content is not None for content in self.content.values())


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_is_not_freed_twice() -> None:
    blocks = KVBlocks(2, 4)
    table = blocks.allocate(1)
    blocks.release(table)
    with pytest.raises(ValueError, match="KV block 0 is free already"):
        blocks.release(table)


def test_nothing_is_handed_out_that_is_not_there() -> None:
    blocks = KVBlocks(1, 4)
    blocks.allocate(1)
    with pytest.raises(KeyError):
        blocks.allocate_one()


def test_hashes_depend_on_tokens_order_prefix_and_adapter() -> None:
    root = root_hash()
    hashes = [
        block_hash(root, [1, 2]),
        block_hash(root, [2, 1]),
        block_hash(root, [1, 2, 0]),
        block_hash(block_hash(root, [1, 2]), [1, 2]),
        block_hash(root_hash(b"adapter"), [1, 2]),
    ]
    assert len(set(hashes)) == len(hashes)
    assert block_hash(root, [1, 2]) == hashes[0]
