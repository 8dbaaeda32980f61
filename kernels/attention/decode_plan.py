"""How programs share decode attention: the keys of all sequences, cut into equal shares.

Sequences differ in length, and one per program would leave multiprocessors idle at the end. So the keys are
counted in tiles, sequence after sequence and KV head after KV head, and each of a fixed number of programs
takes the same number of consecutive tiles, wherever sequences begin and end. Beginning a sequence takes time,
too: each has one tile more than keys to fill them. The plan holds the running count of tiles; it is made on
the device, once per step for all layers, so that a captured graph needs no new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import AttentionShape, PagedSequences

SHARED_MEMORY = 232_448 - 4096
"""Bytes of shared memory that programs on one multiprocessor may take together, on an H100 or H200. A GPU
with less holds fewer at a time, and the others follow: slower, not wrong."""


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How decode attention is run: keys per tile, warps, pipeline stages, programs per multiprocessor."""

    n: int
    num_warps: int
    num_stages: int
    programs: int
    streams: bool = False
    """Whether the kernel is that of `stream`, which counts the new key among those of the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """Made by `plan_decode_attention`, for the wrappers of `decode`."""

    tile_ends: torch.Tensor
    """[batch], int32: tiles of each sequence and all before it, per KV head; each one's first has no keys."""
    num_programs: int
    tiles: DecodeTiles
    includes_new_key: bool
    """Whether the key of each sequence's last token is in the cache already. It is counted then, and by a
    plan for a stream also if it is not."""


MANY_PAIRS = 3072
"""From so many pairs of sequence and KV head on, sequences are short: memory holds no more keys."""
MOST_STREAM_PAIRS = 512
"""Up to so many pairs one stream of keys is faster: with few sequences, beginning and ending them counts."""


def choose_decode_tiles(row_bytes: int, pairs: int, *, can_stream: bool) -> DecodeTiles:
    """Tiles for keys of so many bytes and `pairs` of sequence and KV head; as measured on an H100 with keys
    of 256 bytes."""
    if can_stream and pairs <= MOST_STREAM_PAIRS:
        taken = 4 * 2 * 32 * row_bytes + 16 * row_bytes + 2048
        programs = max(1, min(6, SHARED_MEMORY // taken))
        return DecodeTiles(n=32, num_warps=1, num_stages=4, programs=programs, streams=True)
    n, num_warps, num_stages, most = (16, 1, 3, 8) if pairs >= MANY_PAIRS else (64, 4, 2, 3)
    n = max(16, min(n, n * 256 // row_bytes))
    taken = (num_stages - 1) * 2 * n * row_bytes + 4096
    programs = max(1, min(most, SHARED_MEMORY // taken))
    return DecodeTiles(n=n, num_warps=num_warps, num_stages=num_stages, programs=programs)


def plan_width(batch: int) -> int:
    """The size of vectors over a batch: a power of two, few different ones, as each compiles kernels."""
    return 64 if batch <= 64 else max(512, triton.next_power_of_2(batch))


@triton.jit(do_not_specialize=["batch"])
def _plan_kernel(
    rows,
    seq_lens,
    tile_ends,
    batch,
    WINDOW: tl.constexpr,
    NEW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    entry = tl.arange(0, WIDTH)
    inside = entry < batch
    row = tl.load(rows + entry, mask=inside, other=-1)
    length = tl.where(row < 0, 0, tl.load(seq_lens + entry, mask=inside, other=0))
    start = tl.zeros_like(length)
    if WINDOW > 0:
        start = tl.maximum(length - WINDOW, 0)
    end = tl.maximum(length - NEW, 0)
    tiles = tl.where(inside, 1 + tl.maximum(tl.cdiv(end, BLOCK_N) - start // BLOCK_N, 0), 0)
    tl.store(tile_ends + entry, tl.cumsum(tiles, axis=0), mask=inside)


def plan_decode_attention(
    *,
    sequences: PagedSequences,
    shape: AttentionShape,
    row_bytes: int,
    includes_new_key: bool,
    num_multiprocessors: int,
    num_programs: int | None = None,
    can_stream: bool = False,
) -> DecodePlan:
    """Plan one step's decode attention.

    Args:
        sequences: one token each; padded entries have no keys.
        shape: the model's attention.
        row_bytes: bytes of a key of one head.
        includes_new_key: whether the last token's key is in the cache already.
        num_multiprocessors: the GPU's.
        num_programs: None for as many as the GPU holds at a time.
        can_stream: whether `stream` serves such a model there (see `stream.supports_streams`).
    """
    rows = sequences.rows
    batch = rows.shape[0]
    tiles = choose_decode_tiles(row_bytes, batch * shape.num_kv_heads, can_stream=can_stream)
    tile_ends = torch.empty(batch, dtype=torch.int32, device=rows.device)
    _plan_kernel[(1,)](
        rows=rows,
        seq_lens=sequences.seq_lens,
        tile_ends=tile_ends,
        batch=batch,
        WINDOW=shape.window or 0,
        NEW=int(not includes_new_key and not tiles.streams),
        BLOCK_N=tiles.n,
        WIDTH=plan_width(batch),
        num_warps=4,
    )
    return DecodePlan(
        tile_ends=tile_ends,
        num_programs=num_programs or num_multiprocessors * tiles.programs,
        tiles=tiles,
        includes_new_key=includes_new_key,
    )


def plan_reference(
    rows: torch.Tensor, seq_lens: torch.Tensor, n: int, window: int | None, includes_new_key: bool
) -> list[int]:
    """`DecodePlan.tile_ends` in Python."""
    ends, total = [], 0
    for row, seq_len in zip(rows.tolist(), seq_lens.tolist(), strict=True):
        length = seq_len if row >= 0 else 0
        start = max(length - window, 0) if window else 0
        end = max(length - (not includes_new_key), 0)
        total += 1 + max(-(-end // n) - start // n, 0)
        ends.append(total)
    return ends
