"""Which kernels ask for a large L1 cache.

The L1 cache and the shared memory of an NVIDIA multiprocessor are parts of one memory. A kernel that asks for
nothing runs with the parts that the kernel before it had, and a kernel with more than 48 KiB of shared memory
leaves most of that memory to it (Triton asks so for such kernels). A kernel whose loads pass through the L1
cache into registers has too few of them under way then.

A preference has a price where the kernel before had other parts: the multiprocessor must be idle in between.
And of a kernel that comes after one with a large L1 cache, and asks for nothing, fewer programs may find
shared memory side by side. So only those ask that were measured to gain, and for no more than their
neighbours can spare.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton
from triton.runtime.jit import KernelInterface

Kernel = TypeVar("Kernel", bound=KernelInterface[Any])

PREFER_L1 = 2
"""CU_FUNC_CACHE_PREFER_L1 (CUDA driver API, CUfunc_cache)."""
SHARED_MEMORY_PERCENT = 9
"""CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT (CUfunction_attribute)."""

_logger = logging.getLogger(__name__)
_percents: dict[str, int | None] = {}
"""By a kernel's name, the part of both that it wants as shared memory; None: as little as it can run with."""


def prefer_l1_cache(kernel: Kernel) -> Kernel:
    """Decorates a kernel: wherever it is loaded on an NVIDIA GPU, it asks for the largest L1 cache.

    Triton tells what it loads by name alone, so any other kernel of this name asks, too.
    """
    return _prefer(kernel, None)


def prefer_shared_memory(*, percent: int) -> Callable[[Kernel], Kernel]:
    """As `prefer_l1_cache`, but the kernel asks for so much of that memory as shared memory. The driver
    rounds up to a size that there is."""
    return functools.partial(_prefer, percent=percent)


def _prefer(kernel: Kernel, percent: int | None) -> Kernel:
    _percents[kernel.fn.__name__] = percent
    triton.knobs.runtime.kernel_load_end_hook.add(_ask)
    return kernel


def _ask(module: int, function: int, name: str, metadata_group: dict[str, str], hash: str) -> None:
    """Triton calls this with each kernel that it has loaded; `function`: the CUfunction."""
    if name not in _percents or torch.version.hip is not None:
        return
    handle, percent = ctypes.c_void_p(function), _percents[name]
    if percent is None:
        result = _driver().cuFuncSetCacheConfig(handle, PREFER_L1)
    else:
        result = _driver().cuFuncSetAttribute(handle, SHARED_MEMORY_PERCENT, percent)
    if result:
        _logger.warning("%s: the driver refused a large L1 cache (CUresult %d); it is slower", name, result)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
