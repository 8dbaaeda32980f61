"""KV blocks: sizes, and room where cached blocks are free."""

from __future__ import annotations

import pytest

from dodona.runners.engine.kv_blocks import KVBlocks, block_hash


def test_a_hash_has_sixteen_bytes() -> None:
    # A collision would let one request read another's KV: 128 bits, and no more per block than that.
    assert len(block_hash(b"", [1, 2])) == 16


def test_the_sizes_are_as_given() -> None:
    blocks = KVBlocks(7, 4)
    assert (blocks.num_blocks, blocks.block_size, blocks.num_free, blocks.num_cached) == (7, 4, 7, 0)


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_for_tokens(num_tokens: int, expected: int) -> None:
    assert KVBlocks(9, 4).blocks_for(num_tokens) == expected


def test_free_cached_blocks_that_are_shared_leave_less_room() -> None:
    blocks = KVBlocks(4, 4)
    table = blocks.allocate(2)
    for block, value in zip(table, (b"a", b"b"), strict=True):
        blocks.remember(block, value)
    blocks.release(table)
    found = blocks.find([b"a", b"b", b"c"])
    assert found == table
    assert blocks.can_allocate(4)
    assert blocks.can_allocate(2, found)
    assert not blocks.can_allocate(3, found)
    blocks.share(found)
    # In use now: to share them once more takes nothing from the free ones.
    assert blocks.can_allocate(2, found)
    assert not blocks.can_allocate(3, found)


def test_cached_blocks_are_handed_out_last_and_the_end_of_a_table_before_its_beginning() -> None:
    blocks = KVBlocks(4, 4)
    table = blocks.allocate(3)
    for block, value in zip(table, (b"a", b"b"), strict=False):
        blocks.remember(block, value)
    blocks.release(table)
    # Block 2 holds nothing that can be found; block 3 was never used.
    assert blocks.allocate(4) == [2, 3, 1, 0]
    assert blocks.num_cached == 0
    assert blocks.find([b"a"]) == []


def test_the_first_of_equal_blocks_stays_known() -> None:
    blocks = KVBlocks(2, 4)
    first, second = blocks.allocate(2)
    blocks.remember(first, b"a")
    blocks.remember(second, b"a")
    assert blocks.find([b"a"]) == [first]
    blocks.release([second])
    assert blocks.find([b"a"]) == [first]
    assert blocks.num_cached == 1
