"""The canonical layout of a KV block: the same bytes whichever runner wrote it.

Layer after layer: the keys [block_size, kv_heads, head_size_k], then the values [block_size, kv_heads,
head_size_v], in the cache's type, contiguous, with the keys as attention reads them (after the rotary
embedding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        self._stacked = _stacked(kv_caches)
        self._sizes = [tensor[0].numel() for tensor in self._tensors]
        self.block_elements = sum(self._sizes)
        self.bytes_per_block = self.block_elements * self.dtype.itemsize

    def describe(self) -> str:
        """The layout in words: what two engines must share to read each other's blocks."""
        shapes = [tuple(tensor.shape[1:]) for tensor in self._tensors]
        return f"{self.dtype} {shapes}"

    def empty(self, count: int) -> torch.Tensor:
        """Room for packed blocks: [count, block_elements]."""
        return torch.empty(count, self.block_elements, dtype=self.dtype, device=self.device)

    def pack(self, block_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Copy blocks of the cache: block_ids [n] int64, out [n, block_elements]; on the current stream."""
        if self._stacked is not None:
            out.view(-1, *self._stacked.shape[1:]).copy_(self._stacked.index_select(0, block_ids))
            return
        for tensor, part in zip(self._tensors, torch.split(out, self._sizes, dim=1), strict=True):
            part.view(-1, *tensor.shape[1:]).copy_(tensor.index_select(0, block_ids))

    def unpack(self, block_ids: torch.Tensor, packed: torch.Tensor) -> None:
        """Write blocks of the cache: block_ids [n] int64, packed [n, block_elements]; on the current stream.

        Each id must be there once.
        """
        if self._stacked is not None:
            self._stacked.index_copy_(0, block_ids, packed.view(-1, *self._stacked.shape[1:]))
            return
        for tensor, part in zip(self._tensors, torch.split(packed, self._sizes, dim=1), strict=True):
            tensor.index_copy_(0, block_ids, part.view(-1, *tensor.shape[1:]))


def _stacked(kv_caches: Sequence[LayerKV]) -> torch.Tensor | None:
    """All layers as one view [num_blocks, layers, 2, block_size, kv_heads, head_size], or None where they
    don't lie in one storage at equal distances."""
    keys, values = [layer.keys for layer in kv_caches], [layer.values for layer in kv_caches]
    first = keys[0]
    offsets = [tensor.storage_offset() for tensor in keys]
    to_values = values[0].storage_offset() - offsets[0]
    to_next = offsets[1] - offsets[0] if len(offsets) > 1 else 1
    alike = all(
        tensor.shape == first.shape
        and tensor.stride() == first.stride()
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        for tensor in (*keys, *values)
    )
    if not alike or to_values < 0 or to_next < 0:
        return None
    for index, (offset, value) in enumerate(zip(offsets, values, strict=True)):
        if offset != offsets[0] + index * to_next or value.storage_offset() != offset + to_values:
            return None
    blocks, *inner = first.shape
    block_stride, *strides = first.stride()
    return first.as_strided(
        (blocks, len(keys), 2, *inner), (block_stride, to_next, to_values, *strides), offsets[0]
    )
