"""Copies of KV blocks between the caches of layers and packed memory, against torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.state.block_copies import CacheTensors, copy_blocks, copy_blocks_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def paged(blocks: int, heads: int, block_size: int, head_size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Two layers as V2 has them, [num_blocks, 2, heads, block_size, head_size]."""
    caches = [
        torch.arange(blocks * 2 * heads * block_size * head_size, device=DEVICE).to(dtype) + layer
        for layer in range(2)
    ]
    shaped = [cache.view(blocks, 2, heads, block_size, head_size) for cache in caches]
    return [half.transpose(1, 2) for cache in shaped for half in (cache[:, 0], cache[:, 1])]


def flat(blocks: int, heads: int, block_size: int, head_size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """As V1 has them on the host."""
    shape = (blocks, block_size, heads, head_size)
    return [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(DEVICE, dtype) for i in range(4)
    ]


@pytest.mark.parametrize(
    ("make", "sizes", "dtype"),
    [
        (paged, (5, 2, 16, 16), torch.float32),
        (paged, (4, 3, 8, 24), torch.float16),
        (flat, (6, 1, 4, 4), torch.float16),
        (flat, (5, 4, 16, 12), torch.float32),
    ],
)
def test_blocks_go_out_and_come_in(make, sizes, dtype):
    tensors = make(*sizes, dtype)
    cache = CacheTensors.of(tensors)
    assert cache is not None
    count = sum(tensor[0].numel() for tensor in tensors)
    ids = torch.tensor([sizes[0] - 1, 0, 2], device=DEVICE)
    packed = torch.full((3, count), -1, dtype=dtype, device=DEVICE)
    copy_blocks(cache, ids, packed, pack=True)
    expected = torch.empty_like(packed)
    copy_blocks_reference(tensors, ids, expected, pack=True)
    assert torch.equal(packed, expected)
    assert torch.equal(packed[1], torch.cat([tensor[0].flatten() for tensor in tensors]))
    others = make(*sizes, dtype)
    wanted = make(*sizes, dtype)
    into = torch.tensor([1, 2, 0], device=DEVICE)
    found = CacheTensors.of(others)
    assert found is not None
    copy_blocks(found, into, packed, pack=False)
    copy_blocks_reference(wanted, into, packed, pack=False)
    for other, tensor in zip(others, wanted, strict=True):
        assert torch.equal(other, tensor)
    copy_blocks(cache, ids[:0], packed[:0], pack=True)


def test_tensors_that_the_kernel_cannot_take():
    tensors = flat(3, 2, 4, 8, torch.float32)
    assert CacheTensors.of([tensors[0], tensors[1][:, :, :1]]) is None
    assert CacheTensors.of([tensors[0], tensors[1].transpose(1, 2)]) is None
    assert CacheTensors.of([tensor[..., :3] for tensor in tensors]) is None
    assert CacheTensors.of([tensor[..., 1:3] for tensor in tensors]) is None
    assert CacheTensors.of([tensor.transpose(1, 3) for tensor in tensors]) is None
