"""Applies many small writes of different lengths in one copy and one launch.

What changes from one step to the next (a new request's tokens, a few block ids, a batch's order) is little
and ragged. The host packs it into one buffer; one copy brings the buffer to the device, and this kernel puts
each piece in place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

CHUNK = 1024
"""Values that one program writes; longer writes are cut into several."""


@triton.jit(do_not_specialize=["num_writes"])
def _scatter_ragged_kernel(target, packed, num_writes, CHUNK: tl.constexpr):
    write = tl.program_id(0)
    destination = tl.load(packed + write)
    source = tl.load(packed + num_writes + write)
    length = tl.load(packed + 2 * num_writes + write)
    i = tl.arange(0, CHUNK)
    mask = i < length
    values = tl.load(packed + source + i, mask=mask)
    tl.store(target + destination + i, values, mask=mask)


def pack_writes(
    destinations: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], values: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], int]:
    """The buffer that `scatter_ragged` takes, and the number of writes in it.

    Args:
        destinations: [n], first element of each write in the target.
        lengths: [n], elements of each write.
        values: [sum of lengths], the writes' elements, one write after the other.

    Returns:
        (packed [3 * writes + values], writes); writes longer than `CHUNK` count as several.
    """
    sources = np.cumsum(lengths, dtype=np.int32) - lengths
    pieces = -(-lengths // CHUNK)
    if int(pieces.max(initial=0)) > 1:
        piece = np.arange(int(pieces.sum()), dtype=np.int32) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        offset = piece * CHUNK
        destinations = np.repeat(destinations, pieces) + offset
        sources = np.repeat(sources, pieces) + offset
        lengths = np.minimum(np.repeat(lengths, pieces) - offset, CHUNK)
    writes = len(destinations)
    packed = np.empty(3 * writes + len(values), dtype=np.int32)
    packed[:writes] = destinations
    packed[writes : 2 * writes] = sources + 3 * writes
    packed[2 * writes : 3 * writes] = lengths
    packed[3 * writes :] = values
    return packed, writes


def scatter_ragged(*, target: torch.Tensor, packed: torch.Tensor, num_writes: int) -> None:
    """Write the pieces of `packed` into `target`.

    Writes of one call must not overlap: their order is not defined.

    Args:
        target: [elements], int32, contiguous.
        packed: [3 * num_writes + values], int32, on the device of `target`: destinations, sources (positions
            in `packed`) and lengths (at most `CHUNK`), then the values; see `pack_writes`.
        num_writes: writes in `packed`.
    """
    if num_writes:
        _scatter_ragged_kernel[(num_writes,)](
            target=target, packed=packed, num_writes=num_writes, CHUNK=CHUNK, num_warps=4
        )


def scatter_ragged_reference(target: torch.Tensor, packed: torch.Tensor, num_writes: int) -> torch.Tensor:
    """`scatter_ragged` in torch; returns a new target."""
    result = target.clone()
    header = packed[: 3 * num_writes].view(3, num_writes).T.tolist()
    for destination, source, length in header:
        result[destination : destination + length] = packed[source : source + length]
    return result
