"""The sum of a tensor over the ranks of one machine, in one launch and two trips, with a flag for each block.

As `two_shot_sum`, but the words go as they are, and a flag beside them says that they are there: half the
bytes, and for each trip the time of a fence, which waits until the words have arrived. For tensors whose
bytes take longer than that.

A block and its flag have a buffer, of which a program has two for each trip, used in turn as slots are
(`messages`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.collective.messages import (
    BUFFER_BLOCK,
    MAX_BUFFERS,
    Inboxes,
    add_words,
    buffers_offset,
    flags_offset,
    has_words,
    launch_sum,
    rounded_words,
)
from dodona.kernels.collective.two_shot_sum import PARTS
from dodona.kernels.dependent_launch import let_next_start, wait_for_inputs

__all__ = ["PARTS", "flagged_sum", "max_bytes", "supports_flagged_sum"]


@triton.jit
def _raise_flags(flags, turn, others):
    """Say that the words which this program stored are there."""
    tl.debug_barrier()
    tl.atomic_xchg(flags, others.to(tl.int32) * turn, mask=others, sem="release", scope="sys")


@triton.jit
def _wait_for_flags(flags, turn, others, PATIENCE: tl.constexpr):
    """Until all the others' flags show the turn, or PATIENCE looks (0: no limit)."""
    seen = tl.load(flags, mask=others, other=0, volatile=True)
    tries = 1
    while tl.sum((others & (seen != turn)).to(tl.int32), axis=0) != 0:
        seen = tl.load(flags, mask=others, other=0, volatile=True)
        if PATIENCE:
            tries += 1
            if tries > PATIENCE:
                seen = tl.where(others, turn, seen)
    tl.atomic_add(flags, tl.zeros_like(seen), mask=others, sem="acquire", scope="sys")
    tl.debug_barrier()


@triton.jit(do_not_specialize=["num_words"])
def _flagged_sum_kernel(
    x,
    inboxes,
    turns,
    num_words,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PADDED: tl.constexpr,
    BUFFERS_OFFSET: tl.constexpr,
    FLAGS_OFFSET: tl.constexpr,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    PATIENCE: tl.constexpr,
    PART: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    base = program * (RANKS * BLOCK) + i
    ranks = tl.arange(0, PADDED)
    others = (ranks < RANKS) & (ranks != RANK)
    if DEPENDENT:
        wait_for_inputs()
    there = tl.load(turns + 2 * program) + 1
    back = tl.load(turns + 2 * program + 1) + 1
    buffer_there = 4 * program + (there & 1)
    buffer_back = 4 * program + 2 + (back & 1)
    # Of each rank's memory: where this program's words and flags are.
    flags = tl.load(inboxes + ranks, mask=ranks < RANKS, other=0).to(tl.pointer_type(tl.int32), bitcast=True)
    flags += FLAGS_OFFSET
    inbox = tl.load(inboxes + RANK).to(tl.pointer_type(tl.int32), bitcast=True)
    own_flags = inbox + FLAGS_OFFSET + ranks
    words_there = BUFFERS_OFFSET + buffer_there * (RANKS * BLOCK) + i
    words_back = BUFFERS_OFFSET + buffer_back * (RANKS * BLOCK) + i
    if PART == "all" or PART == "send":
        for step in tl.static_range(1, RANKS):
            owner = (RANK + step) % RANKS
            place = base + owner * BLOCK
            part = tl.load(x + place, mask=place < num_words, other=0)
            to = tl.load(inboxes + owner).to(tl.pointer_type(tl.int32), bitcast=True)
            tl.store(tl.multiple_of(to, 16) + words_there + RANK * BLOCK, part)
        _raise_flags(flags + buffer_there * RANKS + RANK, there, others)
    if PART == "all" or PART == "sum":
        place = base + RANK * BLOCK
        own = tl.load(x + place, mask=place < num_words, other=0)
        _wait_for_flags(own_flags + buffer_there * RANKS, there, others, PATIENCE)
        first = tl.zeros((BLOCK,), tl.float32)
        second = tl.zeros((BLOCK,), tl.float32)
        for sender in tl.static_range(RANKS):
            words = own
            if sender != RANK:
                words = tl.load(tl.multiple_of(inbox, 16) + words_there + sender * BLOCK, volatile=True)
            first, second = add_words(first, second, words, DTYPE, PAIRS)
        total = rounded_words(first, second, DTYPE, PAIRS)
        for step in tl.static_range(1, RANKS):
            to = tl.load(inboxes + (RANK + step) % RANKS).to(tl.pointer_type(tl.int32), bitcast=True)
            tl.store(tl.multiple_of(to, 16) + words_back + RANK * BLOCK, total)
        _raise_flags(flags + buffer_back * RANKS + RANK, back, others)
        tl.store(x + place, total, mask=place < num_words)
    if PART == "all" or PART == "receive":
        _wait_for_flags(own_flags + buffer_back * RANKS, back, others, PATIENCE)
        for step in tl.static_range(1, RANKS):
            owner = (RANK + step) % RANKS
            place = base + owner * BLOCK
            words = tl.load(tl.multiple_of(inbox, 16) + words_back + owner * BLOCK, volatile=True)
            tl.store(x + place, words, mask=place < num_words)
        tl.store(turns + 2 * program, there)
        tl.store(turns + 2 * program + 1, back)


def max_bytes(ranks: int) -> int:
    """Of the largest tensor."""
    return 4 * BUFFER_BLOCK * ranks * (MAX_BUFFERS // 2)


def supports_flagged_sum(x: torch.Tensor, ranks: int) -> bool:
    """Whether `x` can be summed so."""
    return has_words(x, max_bytes(ranks))


def flagged_sum(x: torch.Tensor, inboxes: Inboxes, *, patience: int = 0, part: str = "all") -> torch.Tensor:
    """Sum `x` over the ranks, in place. All ranks must call it, with equal shapes.

    Args:
        x: any shape for which `supports_flagged_sum`, on this rank's device.
        inboxes: this rank's view of them.
        patience: how often to look for a flag that isn't there; then the sum is wrong. 0: until it is.
        part: see `PARTS`.

    Returns:
        `x`.
    """
    ranks = inboxes.ranks
    return launch_sum(
        _flagged_sum_kernel,
        x,
        inboxes,
        max_bytes=max_bytes(ranks),
        patience=patience,
        words_each=BUFFER_BLOCK * ranks,
        with_buffers=True,
        PADDED=triton.next_power_of_2(ranks),
        BUFFERS_OFFSET=buffers_offset(ranks),
        FLAGS_OFFSET=flags_offset(ranks),
        PART=part,
    )
