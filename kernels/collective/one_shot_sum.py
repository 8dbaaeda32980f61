"""The sum of a small tensor over the ranks of one machine, in one launch and one trip between the GPUs.

    out = x of rank 0 + x of rank 1 + …

Every rank sends its tensor to all others, and adds up what arrives. A message is a 64-bit word, which is
stored and loaded at once: 32 bits of data, and the number of the turn. So no fence and no second message has
to say that the data are there (NCCL's protocol LL does the same); they take twice the bytes, which is why
larger tensors are better summed otherwise.

A program sends and receives a fixed part of the tensor, and counts its own turns on the device, so that
launches in captured graphs count too. An inbox has room for two turns: who sends the next but one has
received the next, which its sender sent after it had read this one. Launches must be in the same order on all
ranks, on one stream each.

Sums are fp32, in the ranks' order, rounded once: the same bits on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)

BLOCK = 128
"""Words of 32 bits that a program sends; inboxes are laid out by it."""

MAX_PROGRAMS = 4096
MAX_BYTES = 4 * BLOCK * MAX_PROGRAMS
"""Largest tensor."""

WORD_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _half_of(words, DTYPE: tl.constexpr):
    """The values in the lower 16 bits, in fp32."""
    return words.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _bits_of(values, DTYPE: tl.constexpr):
    """Values, rounded to a type of 16 bits, in the lower bits of a word."""
    return values.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit(do_not_specialize=["num_words"])
def _one_shot_sum_kernel(
    x,
    out,
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
    stamp = turn.to(tl.int64)
    messages = (stamp << 32) | (own.to(tl.int64) & 0xFFFFFFFF)
    desk = (program * 2 + (turn & 1)) * (RANKS * BLOCK)
    for step in tl.static_range(1, RANKS):
        inbox = tl.load(inboxes + (RANK + step) % RANKS).to(tl.pointer_type(tl.int64), bitcast=True)
        tl.store(inbox + desk + RANK * BLOCK + i, messages)
    inbox = tl.load(inboxes + RANK).to(tl.pointer_type(tl.int64), bitcast=True)
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    for sender in tl.static_range(RANKS):
        words = own
        if sender != RANK:
            source = inbox + desk + sender * BLOCK + i
            received = tl.load(source, volatile=True)
            tries = 1
            while tl.sum(((received >> 32) != stamp).to(tl.int32), axis=0) != 0:
                received = tl.load(source, volatile=True)
                if PATIENCE:
                    tries += 1
                    if tries > PATIENCE:
                        received = (stamp << 32) | (received & 0)
            words = received.to(tl.int32)
        if PAIRS:
            first += _half_of(words, DTYPE)
            second += _half_of(words >> 16, DTYPE)
        else:
            first += words.to(tl.float32, bitcast=True)
    if PAIRS:
        total = _bits_of(first, DTYPE) | (_bits_of(second, DTYPE) << 16)
    else:
        total = first.to(tl.int32, bitcast=True)
    tl.store(out + place, total, mask=inside)
    tl.store(turns + program, turn)


@dataclass(frozen=True, slots=True, eq=False)
class Inboxes:
    """Where the ranks find what others sent, as one of them sees it."""

    rank: int
    addresses: torch.Tensor
    """[ranks] int64, on this rank's device: where each rank's inbox begins, as this device addresses it. An
    inbox has `inbox_size` bytes, which are zero at first."""
    turns: torch.Tensor
    """[MAX_PROGRAMS] int32, zero at first."""

    @property
    def ranks(self) -> int:
        """How many there are."""
        return len(self.addresses)


def inbox_size(ranks: int) -> int:
    """Bytes of an inbox: two turns of messages from each rank."""
    return 2 * 8 * ranks * BLOCK * MAX_PROGRAMS


def make_inboxes(rank: int, addresses: Sequence[int], device: torch.device) -> Inboxes:
    """The inboxes at `addresses`, by rank."""
    return Inboxes(
        rank,
        torch.tensor(addresses, dtype=torch.int64, device=device),
        torch.zeros(MAX_PROGRAMS, dtype=torch.int32, device=device),
    )


def supports_one_shot_sum(x: torch.Tensor) -> bool:
    """Whether `x` can be summed so."""
    size = x.numel() * x.element_size()
    return x.dtype in WORD_DTYPES and x.is_contiguous() and size % 4 == 0 and 0 < size <= MAX_BYTES


def one_shot_sum(x: torch.Tensor, inboxes: Inboxes, *, patience: int = 0) -> torch.Tensor:
    """Sum `x` over the ranks, in place. All ranks must call it, with equal shapes.

    Args:
        x: any shape for which `supports_one_shot_sum`, on this rank's device.
        inboxes: this rank's view of them.
        patience: how often to look for a message that isn't there; then the sum is wrong. 0: until it is.

    Returns:
        `x`.
    """
    if not supports_one_shot_sum(x):
        raise ValueError(
            f"x: expected a contiguous tensor of at most {MAX_BYTES} bytes, a multiple of 4, and a type out "
            f"of {', '.join(map(str, WORD_DTYPES))}; got {x.dtype} of shape {list(x.shape)}"
        )
    words = x.view(-1).view(torch.int32)
    dependent = supports_dependent_launch(x.device)
    _one_shot_sum_kernel[(triton.cdiv(len(words), BLOCK),)](
        x=words,
        out=words,
        inboxes=inboxes.addresses,
        turns=inboxes.turns,
        num_words=len(words),
        RANK=inboxes.rank,
        RANKS=inboxes.ranks,
        DTYPE=WORD_DTYPES[x.dtype],
        PAIRS=x.element_size() == 2,
        PATIENCE=patience,
        DEPENDENT=dependent,
        BLOCK=BLOCK,
        num_warps=1,
        **launch_options(dependent),
    )
    return x


def one_shot_sum_reference(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """What `one_shot_sum` gives for the ranks' tensors, in torch."""
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor in tensors:
        total += tensor.float()
    return total.to(tensors[0].dtype)
