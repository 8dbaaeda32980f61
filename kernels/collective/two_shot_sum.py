"""The sum of a tensor over the ranks of one machine, in one launch and two trips between the GPUs.

    out = x of rank 0 + x of rank 1 + …

A rank sends each other rank that one's share of the tensor (`messages`), adds up what arrives of its own
share, and sends the sum to all others. Of n ranks, it sends 2 (n - 1) / n tensors, where `one_shot_sum` sends
n - 1 with one trip: more than two ranks sum tensors that are not small faster so. A program has a block of
each share, and two slots, one for each trip. Sums are fp32, in the ranks' order, rounded once: the same bits
on all ranks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.collective.messages import (
    BLOCK,
    MAX_SLOTS,
    Inboxes,
    add_words,
    has_words,
    inbox_of,
    launch_sum,
    receive,
    rounded_words,
    send,
    slot_offset,
)
from dodona.kernels.dependent_launch import let_next_start, wait_for_inputs

PARTS = ("all", "send", "sum", "receive")
"""Of a launch; a GPU's launches have all. Triton's interpreter runs one rank after the other: it runs the
second on all ranks, then the third, then the last."""


@triton.jit(do_not_specialize=["num_words"])
def _two_shot_sum_kernel(
    x,
    inboxes,
    turns,
    num_words,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
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
    if DEPENDENT:
        wait_for_inputs()
    there = tl.load(turns + 2 * program) + 1
    back = tl.load(turns + 2 * program + 1) + 1
    way_there = slot_offset(2 * program, there, RANKS, BLOCK) + i
    way_back = slot_offset(2 * program + 1, back, RANKS, BLOCK) + i
    inbox = inbox_of(inboxes, RANK)
    if PART == "all" or PART == "send":
        for step in tl.static_range(1, RANKS):
            owner = (RANK + step) % RANKS
            place = base + owner * BLOCK
            part = tl.load(x + place, mask=place < num_words, other=0)
            send(inbox_of(inboxes, owner) + way_there + RANK * BLOCK, part, there)
    if PART == "all" or PART == "sum":
        place = base + RANK * BLOCK
        own = tl.load(x + place, mask=place < num_words, other=0)
        first = tl.zeros((BLOCK,), tl.float32)
        second = tl.zeros((BLOCK,), tl.float32)
        for sender in tl.static_range(RANKS):
            words = own
            if sender != RANK:
                words = receive(inbox + way_there + sender * BLOCK, there, PATIENCE)
            first, second = add_words(first, second, words, DTYPE, PAIRS)
        total = rounded_words(first, second, DTYPE, PAIRS)
        for step in tl.static_range(1, RANKS):
            send(inbox_of(inboxes, (RANK + step) % RANKS) + way_back + RANK * BLOCK, total, back)
        tl.store(x + place, total, mask=place < num_words)
    if PART == "all" or PART == "receive":
        for step in tl.static_range(1, RANKS):
            owner = (RANK + step) % RANKS
            place = base + owner * BLOCK
            words = receive(inbox + way_back + owner * BLOCK, back, PATIENCE)
            tl.store(x + place, words, mask=place < num_words)
        tl.store(turns + 2 * program, there)
        tl.store(turns + 2 * program + 1, back)


def max_bytes(ranks: int) -> int:
    """Of the largest tensor."""
    return 4 * BLOCK * ranks * (MAX_SLOTS // 2)


def supports_two_shot_sum(x: torch.Tensor, ranks: int) -> bool:
    """Whether `x` can be summed so."""
    return has_words(x, max_bytes(ranks))


def two_shot_sum(x: torch.Tensor, inboxes: Inboxes, *, patience: int = 0, part: str = "all") -> torch.Tensor:
    """Sum `x` over the ranks, in place. All ranks must call it, with equal shapes.

    Args:
        x: any shape for which `supports_two_shot_sum`, on this rank's device.
        inboxes: this rank's view of them.
        patience: how often to look for a message that isn't there; then the sum is wrong. 0: until it is.
        part: see `PARTS`.

    Returns:
        `x`.
    """
    return launch_sum(
        _two_shot_sum_kernel,
        x,
        inboxes,
        max_bytes=max_bytes(inboxes.ranks),
        patience=patience,
        words_each=BLOCK * inboxes.ranks,
        PART=part,
    )
