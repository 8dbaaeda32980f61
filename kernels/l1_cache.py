"""Which kernels ask for a large L1 cache.

The L1 cache and the shared memory of an NVIDIA multiprocessor are parts of one memory. A kernel that asks for
nothing runs with the parts that the kernel before it had, and a kernel with more than 48 KiB of shared memory
leaves most of that memory to it (Triton asks so for such kernels). A kernel whose loads pass through the L1
cache into registers has too few of them under way then.

A preference has a price where the kernel before had other parts: the multiprocessor must be idle in between.
So only those ask that were measured to gain.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any, TypeVar

import torch
import triton
from triton.runtime.jit import KernelInterface

Kernel = TypeVar("Kernel", bound=KernelInterface[Any])

PREFER_L1 = 2
"""CU_FUNC_CACHE_PREFER_L1 (CUDA driver API, CUfunc_cache)."""

_logger = logging.getLogger(__name__)
_names: set[str] = set()


def prefer_l1_cache(kernel: Kernel) -> Kernel:
    """Decorates a kernel: wherever it is loaded on an NVIDIA GPU, it asks for the largest L1 cache.

    Triton tells what it loads by name alone, so any other kernel of this name asks, too.
    """
    _names.add(kernel.fn.__name__)
    triton.knobs.runtime.kernel_load_end_hook.add(_ask)
    return kernel


def _ask(module: int, function: int, name: str, metadata_group: dict[str, str], hash: str) -> None:
    """Triton calls this with each kernel that it has loaded; `function`: the CUfunction."""
    if name in _names and torch.version.hip is None:
        result = _driver().cuFuncSetCacheConfig(ctypes.c_void_p(function), PREFER_L1)
        if result:
            _logger.warning(
                "%s: the driver refused a large L1 cache (CUresult %d); it is slower", name, result
            )


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
