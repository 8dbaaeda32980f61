"""Attention of one sequence in splits: each of several programs takes a share of the keys.

A split's result is its attention over its own keys, with the log-sum-exp of its scores. The sequence's result
is the sum of the splits' results, weighed by their log-sum-exps. Who weighs them is open: the last program of
`small_batch`'s kernel to end, or the output projection (`linear.attended_linear`), which reads the attended
vector anyway.
"""

# ruff: noqa: RUF005 - kernels can't unpack tuples
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dodona.kernels.attention.arguments import PagedSequences

NO_SCORE = tl.constexpr(-1e30)
"""Below every score, and finite, so that differences of it are numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionParts:
    """Results of the splits of each sequence, not weighed yet."""

    values: torch.Tensor
    """[batch, num_q_heads, num_splits, head_size]: each split's attention over its own keys."""
    lse: torch.Tensor
    """[batch, num_q_heads, num_splits], float32: base-2 logarithm of each split's sum of exponentials."""
    sequences: PagedSequences
    """What attention was given. With `tile` and `window` it says how many splits a sequence has."""
    tile: int
    """Keys per tile."""
    window: int
    """Most recent keys that are seen, or 0 for all."""


@triton.jit
def split_keys(row, known_len, before, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """How a sequence's keys in the cache are split, the new one and `before` others not among them: (first
    key, end, tiles per split, splits). A padded entry of the batch, row -1, has one split without keys."""
    seq_len = tl.where(row < 0, 0, known_len)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(seq_len - WINDOW, 0)
    end = tl.maximum(seq_len - 1 - before, 0)
    start = tl.minimum(start, end)
    tiles = tl.cdiv(end - start, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(tiles, MAX_SPLITS), 1)
    return start, end, tiles_per_split, tl.maximum(tl.cdiv(tiles, tiles_per_split), 1)


@triton.jit
def split_weights(lse, active, MAX_SPLITS: tl.constexpr):
    """The weight of each split's result from a tuple of their log-sum-exps; 0 from `active` on."""
    top = lse[0]
    for i in tl.static_range(1, MAX_SPLITS):
        top = tl.maximum(top, lse[i])
    weights = ()
    total = tl.zeros_like(top)
    for i in tl.static_range(MAX_SPLITS):
        weight = tl.where(i < active, tl.exp2(lse[i] - top), 0.0)
        total += weight
        weights = weights + (weight,)
    inverse = 1.0 / total
    scaled = ()
    for i in tl.static_range(MAX_SPLITS):
        scaled = scaled + (weights[i] * inverse,)
    return scaled
