"""The columns of a small matrix that the ranks of one machine have, on all of them, in one launch.

    out = [x of rank 0 | x of rank 1 | …]

Every rank sends its columns to all others (`messages`); a program has a fixed part of them, at one slot.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dodona.kernels.collective.messages import (
    BLOCK,
    MAX_SLOTS,
    Inboxes,
    has_words,
    inbox_of,
    launch,
    receive,
    send,
    slot_offset,
)
from dodona.kernels.dependent_launch import let_next_start, wait_for_inputs

PARTS = ("all", "send", "receive")
"""Of a launch; a GPU's launches have all. Triton's interpreter runs the second on all ranks, then the
last."""

MAX_BYTES = 4 * BLOCK * MAX_SLOTS
"""Most bytes of a rank's columns."""


@triton.jit(do_not_specialize=["num_words", "row_words"])
def _gather_columns_kernel(
    x,
    out,
    inboxes,
    turns,
    num_words,
    row_words,
    out_stride,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PATIENCE: tl.constexpr,
    PART: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if DEPENDENT:
        let_next_start()
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    place = program * BLOCK + i
    inside = place < num_words
    target = out + (place // row_words) * out_stride + place % row_words
    if DEPENDENT:
        wait_for_inputs()
    turn = tl.load(turns + program) + 1
    slot = slot_offset(program, turn, RANKS, BLOCK) + i
    if PART == "all" or PART == "send":
        own = tl.load(x + place, mask=inside, other=0)
        for step in tl.static_range(1, RANKS):
            send(inbox_of(inboxes, (RANK + step) % RANKS) + slot + RANK * BLOCK, own, turn)
        tl.store(target + RANK * row_words, own, mask=inside)
    if PART == "all" or PART == "receive":
        inbox = inbox_of(inboxes, RANK)
        for step in tl.static_range(1, RANKS):
            sender = (RANK + step) % RANKS
            words = receive(inbox + slot + sender * BLOCK, turn, PATIENCE)
            tl.store(target + sender * row_words, words, mask=inside)
        tl.store(turns + program, turn)


def supports_gather_columns(x: torch.Tensor) -> bool:
    """Whether `x` can be gathered so."""
    return has_words(x, MAX_BYTES) and x.dim() == 2 and x.shape[1] * x.element_size() % 4 == 0


def gather_columns(
    *, x: torch.Tensor, out: torch.Tensor, inboxes: Inboxes, patience: int = 0, part: str = "all"
) -> torch.Tensor:
    """Bring the ranks' columns together. All ranks must call it, with equal shapes.

    Args:
        x: [n, columns] for which `supports_gather_columns`, on this rank's device.
        out: [n, ranks * columns] of the same type and device, whose rows are contiguous and begin at words of
            32 bits.
        inboxes: this rank's view of them.
        patience: how often to look for a message that isn't there; then `out` is wrong. 0: until it is.
        part: see `PARTS`.

    Returns:
        `out`.
    """
    per_word = 4 // x.element_size()
    expected = (x.shape[0], x.shape[1] * inboxes.ranks)
    if tuple(out.shape) != expected or out.dtype != x.dtype or out.stride(1) != 1 or out.stride(0) % per_word:
        raise ValueError(
            f"out: expected {x.dtype} of shape {list(expected)} with rows of whole words; got {out.dtype} of "
            f"shape {list(out.shape)} with strides {list(out.stride())}"
        )
    launch(
        _gather_columns_kernel,
        x,
        inboxes,
        max_bytes=MAX_BYTES,
        patience=patience,
        out=out.view(torch.int32),
        row_words=x.shape[1] // per_word,
        out_stride=out.stride(0) // per_word,
        PART=part,
    )
    return out
