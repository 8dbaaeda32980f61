"""The paged KV cache: one pair of tensors per attention call of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.block_layout import LayerKV


class PagedKVCache:
    """Keys and values by slot; slot `block_id * block_size + offset` holds one token.

    `keys[i]`: [num_blocks * block_size, kv_heads, head_size_k], `values[i]`: [..., head_size_v], for the i-th
    attention call of a forward pass; a call with window blocks has slots of its own, see `window_blocks`.
    Memory is not initialised: attention reads only slots that a row's own
    tokens were written to.
    """

    def __init__(
        self,
        layers: Sequence[LayerKVSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        window_blocks: Sequence[tuple[Sequence[int], int]] = (),
    ) -> None:
        """window_blocks: for each group of calls that has them, the calls and how many window blocks."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        counts = [num_blocks] * len(layers)
        for calls, count in window_blocks:
            for call in calls:
                counts[call] = count

        def empty(size: int, spec: LayerKVSpec, count: int) -> torch.Tensor:
            return torch.empty(count * block_size, spec.num_kv_heads, size, dtype=dtype, device=device)

        self.keys = [empty(s.head_size_k, s, n) for s, n in zip(layers, counts, strict=True)]
        self.values = [empty(s.head_size_v, s, n) for s, n in zip(layers, counts, strict=True)]

    def free_rows(self, rows: Sequence[int]) -> None:
        """Nothing: blocks belong to the scheduler, which may share them."""

    def layers(self) -> list[LayerKV]:
        """The cache block by block, by attention call, for KV transfer."""
        return [
            LayerKV(*(t.view(len(t) // self.block_size, self.block_size, *t.shape[1:]) for t in pair))
            for pair in zip(self.keys, self.values, strict=True)
        ]

    def write(self, call: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store key [T, kv_heads, head_size_k] and value [T, kv_heads, head_size_v] at `slots` [T]."""
        self.keys[call].index_copy_(0, slots, key)
        self.values[call].index_copy_(0, slots, value)

    def gather(self, call: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots` (any shape S): S + [kv_heads, head_size]."""
        flat, keys, values = slots.reshape(-1), self.keys[call], self.values[call]
        return (
            keys.index_select(0, flat).view(*slots.shape, *keys.shape[1:]),
            values.index_select(0, flat).view(*slots.shape, *values.shape[1:]),
        )
