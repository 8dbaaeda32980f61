"""Copies of small tensors from a GPU to pinned host memory, by a kernel.

A GPU's copy engines carry out copies to the host in the order in which they were asked for, whatever their
streams: a step's result would wait for the KV blocks that are stored. What a kernel writes does not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


# Results of all sizes, at any address, have one compiled kernel of each type.
@triton.jit(do_not_specialize=["source", "target", "size"])
def _copy_kernel(source, target, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < size), mask=i < size)


def copy_to_host(*, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Copy `x` into `out`, on the current stream of its device.

    Args:
        x: any shape and type.
        out: contiguous, of the same shape and type; in pinned memory where `x` is on a GPU.

    Returns:
        `out`.
    """
    if x.shape != out.shape or x.dtype != out.dtype or not out.is_contiguous():
        raise ValueError(
            f"out: expected a contiguous tensor of {x.dtype} and shape {list(x.shape)}; got {out.dtype} of "
            f"shape {list(out.shape)} with strides {list(out.stride())}"
        )
    word = torch.int32 if x.element_size() % 4 == 0 else torch.uint8
    source, target = (tensor.reshape(-1).view(word) for tensor in (x, out))
    if len(source):
        _copy_kernel[(triton.cdiv(len(source), _BLOCK),)](
            source=source, target=target, size=len(source), BLOCK=_BLOCK, num_warps=4
        )
    return out
