"""Copies KV blocks between the caches of all layers and packed memory, in one launch.

A block's keys and values lie in as many places as there are layers. Copied tensor by tensor, a block of many
layers costs more time on the host than its bytes take on the way to another memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_WORD = 8
_ROWS = 32
"""Heads of tokens that one program copies."""


@triton.jit
def _copy_blocks_kernel(
    addresses,
    block_ids,
    packed,
    heads,
    words,
    rows,
    block_stride,
    token_stride,
    head_stride,
    PACK: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    tensor = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    word = tl.arange(0, WORDS)
    mask = (row < rows)[:, None] & (word < words)[None, :]
    inside = (row // heads) * token_stride + (row % heads) * head_stride
    # Words, since nothing is known of what an address that was loaded is a multiple of.
    base = tl.load(addresses + tensor).to(tl.pointer_type(tl.int64))
    cached = base + tl.load(block_ids + block) * block_stride + inside[:, None] + word[None, :]
    there = (
        packed + (block * tl.num_programs(1) + tensor) * rows * words + row[:, None] * words + word[None, :]
    )
    if PACK:
        tl.store(there, tl.load(cached, mask=mask), mask=mask)
    else:
        tl.store(cached, tl.load(there, mask=mask), mask=mask)


@dataclass(frozen=True, slots=True, eq=False)
class CacheTensors:
    """Tensors [num_blocks, block_size, heads, head_size] of one shape and with the same strides."""

    tensors: tuple[torch.Tensor, ...]
    addresses: torch.Tensor
    """[tensors], int64, on their device."""

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> CacheTensors | None:
        """None where `copy_blocks` can't take them: unlike shapes or strides, heads that are not contiguous,
        or that are no whole words of 8 bytes."""
        first = tensors[0]
        size = first.element_size()
        in_words = [*first.stride()[:-1], first.shape[-1]]
        alike = all(
            (t.shape, t.stride(), t.dtype, t.device)
            == (first.shape, first.stride(), first.dtype, first.device)
            and t.data_ptr() % _WORD == 0
            for t in tensors
        )
        if not alike or first.stride(-1) != 1 or any(count * size % _WORD for count in in_words):
            return None
        addresses = torch.tensor([t.data_ptr() for t in tensors], device=first.device)
        return cls(tuple(tensors), addresses)


def copy_blocks(cache: CacheTensors, block_ids: torch.Tensor, packed: torch.Tensor, *, pack: bool) -> None:
    """Copy blocks into packed memory (pack), or from there into the cache; on the current stream.

    Args:
        cache: all tensors of the cache.
        block_ids: [n] int64, on the cache's device; each there once where the cache is written.
        packed: [n, elements of a block over all tensors], contiguous, of the cache's type and device: tensor
            after tensor, [block_size, heads, head_size] each.
    """
    first = cache.tensors[0]
    _, block_size, heads, head_size = first.shape
    per_word = _WORD // first.element_size()
    block_stride, token_stride, head_stride, _ = (stride // per_word for stride in first.stride())
    words, rows = head_size // per_word, block_size * heads
    if len(block_ids):
        _copy_blocks_kernel[(len(block_ids), len(cache.tensors), triton.cdiv(rows, _ROWS))](
            addresses=cache.addresses,
            block_ids=block_ids,
            packed=packed.view(torch.int64),
            heads=heads,
            words=words,
            rows=rows,
            block_stride=block_stride,
            token_stride=token_stride,
            head_stride=head_stride,
            PACK=pack,
            ROWS=_ROWS,
            WORDS=triton.next_power_of_2(words),
            num_warps=4,
        )


def copy_blocks_reference(
    tensors: Sequence[torch.Tensor], block_ids: torch.Tensor, packed: torch.Tensor, *, pack: bool
) -> None:
    """`copy_blocks` in torch, for tensors of any shapes and strides."""
    sizes = [tensor[0].numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(packed, sizes, dim=1), strict=True):
        if pack:
            part.view(-1, *tensor.shape[1:]).copy_(tensor.index_select(0, block_ids))
        else:
            tensor.index_copy_(0, block_ids, part.view(-1, *tensor.shape[1:]))
