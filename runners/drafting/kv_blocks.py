"""What a draft with KV of its own takes beside the target's: room in each block, and blocks of each row's
own."""

from __future__ import annotations

from dataclasses import replace

from dodona.runners.interface import KVCacheSpec, LayerKVSpec


def own_blocks(num_speculative_tokens: int, block_size: int) -> int:
    """Blocks of a row's own: drafts follow computed tokens, which its table has room for."""
    return -(-(num_speculative_tokens + 1) // block_size)


def extended(spec: KVCacheSpec, layers: tuple[LayerKVSpec, ...], num_speculative_tokens: int) -> KVCacheSpec:
    """The target's spec with a draft's layers in its blocks, and the blocks of each row's own."""
    elements = sum(s.num_kv_heads * (s.head_size_k + s.head_size_v) for s in layers)
    alone = elements * spec.block_size * spec.dtype_bytes
    own = own_blocks(num_speculative_tokens, spec.block_size) * alone
    return replace(spec, layers=spec.layers + layers, state_bytes_per_row=spec.state_bytes_per_row + own)
