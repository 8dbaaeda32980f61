"""The sum of a small tensor over the ranks of one machine, in one launch and one trip between the GPUs.

    out = x of rank 0 + x of rank 1 + …

Every rank sends its tensor to all others (`messages`), and adds up what arrives. A program sends and receives
a fixed part of the tensor, at one slot. Sums are fp32, in the ranks' order, rounded once: the same bits on
all ranks.
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

MAX_BYTES = 4 * BLOCK * MAX_SLOTS
"""Largest tensor."""


@triton.jit(do_not_specialize=["num_words"])
def _one_shot_sum_kernel(
    x,
    inboxes,
    turns,
    num_words,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    PATIENCE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    place = program * BLOCK + i
    inside = place < num_words
    if DEPENDENT:
        wait_for_inputs()
    own = tl.load(x + place, mask=inside, other=0)
    turn = tl.load(turns + program) + 1
    slot = slot_offset(program, turn, RANKS, BLOCK) + i
    for step in tl.static_range(1, RANKS):
        send(inbox_of(inboxes, (RANK + step) % RANKS) + slot + RANK * BLOCK, own, turn)
    inbox = inbox_of(inboxes, RANK)
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    for sender in tl.static_range(RANKS):
        words = own
        if sender != RANK:
            words = receive(inbox + slot + sender * BLOCK, turn, PATIENCE)
        first, second = add_words(first, second, words, DTYPE, PAIRS)
    tl.store(x + place, rounded_words(first, second, DTYPE, PAIRS), mask=inside)
    tl.store(turns + program, turn)


def supports_one_shot_sum(x: torch.Tensor) -> bool:
    """Whether `x` can be summed so."""
    return has_words(x, MAX_BYTES)


def one_shot_sum(x: torch.Tensor, inboxes: Inboxes, *, patience: int = 0) -> torch.Tensor:
    """Sum `x` over the ranks, in place. All ranks must call it, with equal shapes.

    Args:
        x: any shape for which `supports_one_shot_sum`, on this rank's device.
        inboxes: this rank's view of them.
        patience: how often to look for a message that isn't there; then the sum is wrong. 0: until it is.

    Returns:
        `x`.
    """
    return launch_sum(_one_shot_sum_kernel, x, inboxes, max_bytes=MAX_BYTES, patience=patience)
