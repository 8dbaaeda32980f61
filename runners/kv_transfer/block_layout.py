"""The canonical layout of a KV block: the same bytes whichever runner wrote it.

Layer after layer: the keys [block_size, kv_heads, head_size_k], then the values [block_size, kv_heads,
head_size_v], in the cache's type, contiguous, with the keys as attention reads them (after the rotary
embedding).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, eq=False)
class LayerKV:
    """One layer's cache, as views of the runner's tensors, with any strides."""

    keys: torch.Tensor
    """[num_blocks, block_size, kv_heads, head_size_k]."""
    values: torch.Tensor
    """[num_blocks, block_size, kv_heads, head_size_v]."""


class BlockLayout:
    """Copies blocks between a runner's cache and the canonical layout, on the cache's device."""

    def __init__(self, kv_caches: Sequence[LayerKV]) -> None:
        self._tensors = [tensor for layer in kv_caches for tensor in (layer.keys, layer.values)]
        self.dtype = self._tensors[0].dtype
        self.device = self._tensors[0].device
        self.num_layers = len(kv_caches)
        self._sizes = [tensor[0].numel() for tensor in self._tensors]
        self.block_elements = sum(self._sizes)
        self.bytes_per_block = self.block_elements * self.dtype.itemsize
        self._copy = _copy_by_kernel(self._tensors) or self._copy_by_tensor
        if self.device.type == "cuda" and len(self._tensors[0]):
            # Kernels are compiled here, not in a request.
            block, packed = torch.zeros(1, dtype=torch.int64, device=self.device), self.empty(1)
            self.pack(block, packed)
            self.unpack(block, packed)

    def empty(self, count: int) -> torch.Tensor:
        """Room for packed blocks: [count, block_elements]."""
        return torch.empty(count, self.block_elements, dtype=self.dtype, device=self.device)

    def pack(self, block_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Copy blocks of the cache: block_ids [n] int64, out [n, block_elements], contiguous; on the current
        stream."""
        self._copy(block_ids, out, pack=True)

    def unpack(self, block_ids: torch.Tensor, packed: torch.Tensor) -> None:
        """Write blocks of the cache: block_ids [n] int64, packed [n, block_elements], contiguous; on the
        current stream.

        Each id must be there once.
        """
        self._copy(block_ids, packed, pack=False)

    def _copy_by_tensor(self, block_ids: torch.Tensor, packed: torch.Tensor, *, pack: bool) -> None:
        for tensor, part in zip(self._tensors, torch.split(packed, self._sizes, dim=1), strict=True):
            if pack:
                part.view(-1, *tensor.shape[1:]).copy_(tensor.index_select(0, block_ids))
            else:
                tensor.index_copy_(0, block_ids, part.view(-1, *tensor.shape[1:]))


class _Copy(Protocol):
    def __call__(self, block_ids: torch.Tensor, packed: torch.Tensor, *, pack: bool) -> None: ...


def _copy_by_kernel(tensors: Sequence[torch.Tensor]) -> _Copy | None:
    """All tensors in one launch, on a GPU with Triton; None where that can't be."""
    if tensors[0].device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from dodona.kernels.state.block_copies import CacheTensors, copy_blocks

    cache = CacheTensors.of(tensors)
    return None if cache is None else partial(copy_blocks, cache)
