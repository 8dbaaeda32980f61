"""Messages between the GPUs of one machine, of which kernels that sum over ranks are made.

A message is a 64-bit word, which is stored and loaded at once: 32 bits of data, and the number of the turn.
So no fence and no second message has to say that the data are there (NCCL's protocol LL does the same); they
take twice the bytes, which is why large tensors are better summed otherwise.

A rank's inbox consists of slots, one after the other: room for `BLOCK` words from each rank, twice. A program
of a launch has slots of its own, and counts the turns of each on the device, so that launches in captured
graphs count too. A slot has room for two turns: who sends the next but one has received the next, which its
sender sent after it had read this one. So at each turn of a slot every rank must receive from all others.
Launches must be in the same order on all ranks, on one stream each; their kinds may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from dodona.kernels.dependent_launch import launch_options, supports_dependent_launch

BLOCK = 128
"""Words of 32 bits that a rank sends to a slot in a turn; inboxes are laid out by it."""

MAX_SLOTS = 4096

BUFFER_BLOCK = 512
"""Words that a rank puts into a buffer, see `flagged_sum`."""

MAX_BUFFERS = 1024
"""Pairs of buffers; they lie behind the slots, and the flags behind them."""

WORD_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Types of which a word holds one element or two."""


@triton.jit
def _half_of(words, DTYPE: tl.constexpr):
    """The values in the lower 16 bits, in fp32."""
    return words.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _bits_of(values, DTYPE: tl.constexpr):
    """Values, rounded to a type of 16 bits, in the lower bits of a word."""
    return values.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def add_words(first, second, words, DTYPE: tl.constexpr, PAIRS: tl.constexpr):
    """Add the elements of words to sums in fp32: of the lower halves and of the upper ones, where words are
    pairs."""
    if PAIRS:
        first += _half_of(words, DTYPE)
        second += _half_of(words >> 16, DTYPE)
    else:
        first += words.to(tl.float32, bitcast=True)
    return first, second


@triton.jit
def rounded_words(first, second, DTYPE: tl.constexpr, PAIRS: tl.constexpr):
    """The words of what `add_words` has summed."""
    if PAIRS:
        total = _bits_of(first, DTYPE) | (_bits_of(second, DTYPE) << 16)
    else:
        total = first.to(tl.int32, bitcast=True)
    return total


@triton.jit
def slot_offset(slot, turn, RANKS: tl.constexpr, BLOCK: tl.constexpr):
    """Where in an inbox the messages of a slot's turn begin."""
    return (slot * 2 + (turn & 1)) * (RANKS * BLOCK)


@triton.jit
def inbox_of(inboxes, rank):
    """Pointer to a rank's inbox."""
    return tl.load(inboxes + rank).to(tl.pointer_type(tl.int64), bitcast=True)


@triton.jit
def send(to, words, turn):
    """Store words as messages of a turn."""
    tl.store(to, (turn.to(tl.int64) << 32) | (words.to(tl.int64) & 0xFFFFFFFF))


@triton.jit
def receive(source, turn, PATIENCE: tl.constexpr):
    """The words of a turn's messages. Looks PATIENCE times, then gives zeros; 0: until they are there."""
    stamp = turn.to(tl.int64)
    received = tl.load(source, volatile=True)
    tries = 1
    while tl.sum(((received >> 32) != stamp).to(tl.int32), axis=0) != 0:
        received = tl.load(source, volatile=True)
        if PATIENCE:
            tries += 1
            if tries > PATIENCE:
                received = (stamp << 32) | (received & 0)
    return received.to(tl.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Inboxes:
    """Where the ranks find what others sent, as one of them sees it."""

    rank: int
    addresses: torch.Tensor
    """[ranks] int64, on this rank's device: where each rank's inbox begins, as this device addresses it. An
    inbox has `inbox_size` bytes, which are zero at first."""
    turns: torch.Tensor
    """[MAX_SLOTS] int32, zero at first."""
    buffer_turns: torch.Tensor
    """[MAX_BUFFERS] int32, zero at first."""

    @property
    def ranks(self) -> int:
        """How many there are."""
        return len(self.addresses)


def inbox_size(ranks: int) -> int:
    """Bytes of an inbox: two turns of messages from each rank, of blocks, and of their flags."""
    return 4 * (flags_offset(ranks) + 2 * ranks * MAX_BUFFERS)


def buffers_offset(ranks: int) -> int:
    """Words of an inbox before the buffers."""
    return 2 * 2 * ranks * BLOCK * MAX_SLOTS


def flags_offset(ranks: int) -> int:
    """Words of an inbox before the buffers' flags."""
    return buffers_offset(ranks) + 2 * ranks * BUFFER_BLOCK * MAX_BUFFERS


def make_inboxes(rank: int, addresses: Sequence[int], device: torch.device) -> Inboxes:
    """The inboxes at `addresses`, by rank."""
    return Inboxes(
        rank,
        torch.tensor(addresses, dtype=torch.int64, device=device),
        torch.zeros(MAX_SLOTS, dtype=torch.int32, device=device),
        torch.zeros(MAX_BUFFERS, dtype=torch.int32, device=device),
    )


def launch(
    kernel: Any,
    x: torch.Tensor,
    inboxes: Inboxes,
    *,
    max_bytes: int,
    patience: int,
    words_each: int = BLOCK,
    with_buffers: bool = False,
    **arguments: Any,
) -> None:
    """Launch a kernel that exchanges the words of `x` with the other ranks.

    Args:
        kernel: of Triton; takes x, inboxes, turns, num_words, RANK, RANKS, PATIENCE, DEPENDENT and BLOCK.
        x: what `words_of` takes.
        inboxes: this rank's view of them.
        max_bytes: see `words_of`.
        patience: how often to look for what isn't there; 0: until it is.
        words_each: words of `x` that a program has.
        with_buffers: whether it uses buffers and their turns, not slots.
        arguments: the kernel's others.
    """
    words = words_of(x, max_bytes)
    dependent = supports_dependent_launch(x.device)
    kernel[(triton.cdiv(len(words), words_each),)](
        x=words,
        inboxes=inboxes.addresses,
        turns=inboxes.buffer_turns if with_buffers else inboxes.turns,
        num_words=len(words),
        RANK=inboxes.rank,
        RANKS=inboxes.ranks,
        PATIENCE=patience,
        DEPENDENT=dependent,
        BLOCK=BUFFER_BLOCK if with_buffers else BLOCK,
        num_warps=4 if with_buffers else 1,
        **launch_options(dependent),
        **arguments,
    )


def launch_sum(kernel: Any, x: torch.Tensor, inboxes: Inboxes, **arguments: Any) -> torch.Tensor:
    """`launch` a kernel that sums over the ranks and takes DTYPE and PAIRS, too; `x`."""
    launch(kernel, x, inboxes, DTYPE=WORD_DTYPES.get(x.dtype), PAIRS=x.element_size() == 2, **arguments)
    return x


def words_of(x: torch.Tensor, max_bytes: int) -> torch.Tensor:
    """`x` as words [n] int32 in the same memory. Raises ValueError where `has_words` is false."""
    if not has_words(x, max_bytes):
        raise ValueError(
            f"x: expected a contiguous tensor of at most {max_bytes} bytes, a multiple of 4, and a type out "
            f"of {', '.join(map(str, WORD_DTYPES))}; got {x.dtype} of shape {list(x.shape)}"
        )
    return x.view(-1).view(torch.int32)


def has_words(x: torch.Tensor, max_bytes: int) -> bool:
    """Whether `x` consists of at most `max_bytes` of words."""
    size = x.numel() * x.element_size()
    return x.dtype in WORD_DTYPES and x.is_contiguous() and size % 4 == 0 and 0 < size <= max_bytes


def sum_reference(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the ranks' tensors, in torch: in fp32, in the ranks' order, rounded once."""
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor in tensors:
        total += tensor.float()
    return total.to(tensors[0].dtype)
