"""Values that the attention kernels' wrappers take: what belongs to a model, to a layer, and to a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOG2_E = 1.4426950408889634
"""Kernels compute exponentials to base 2."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The attention of one model."""

    num_q_heads: int
    """A multiple of `num_kv_heads`."""
    num_kv_heads: int
    head_size: int
    scale: float
    """Factor of the scores; positive."""
    window: int | None = None
    """Most recent keys that a query sees, its own among them; None for all."""

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def scale_log2(self) -> float:
        """`scale` for scores that are exponents to base 2."""
        return self.scale * LOG2_E


@dataclass(frozen=True, slots=True, eq=False)
class QKNorm:
    """RMS norm of each head's query and key in one layer."""

    q_weight: torch.Tensor
    """[head_size]."""
    k_weight: torch.Tensor
    """[head_size]."""
    eps: float
    """Added to the mean square."""


@dataclass(frozen=True, slots=True, eq=False)
class NewTokens:
    """A step's tokens, for kernels that rotate queries and keys and write keys and values to the cache."""

    positions: torch.Tensor
    """[tokens], int32 or int64: each token's position in its sequence."""
    slots: torch.Tensor
    """[tokens], int32: KV block id * block_size + offset in the block, or -1: then nothing is written to the
    cache for the token."""
    cos_sin: torch.Tensor
    """[max positions, head_size], float32: cosines in the first half of a row, sines in the second."""


@dataclass(frozen=True, slots=True, eq=False)
class PagedSequences:
    """A step's sequences in the paged KV cache. The cache itself is not here: each layer has its own."""

    block_table: torch.Tensor
    """[state rows, max blocks], int32: the block ids of each state row."""
    rows: torch.Tensor
    """[batch], int32: each sequence's state row. Among decodes, -1 for a padded entry."""
    seq_lens: torch.Tensor
    """[batch], int32: tokens of each sequence, those of this step among them."""
