"""A ring in shared memory that inline assembly addresses.

Triton tells no kernel where it puts a buffer. It puts the largest first, and a kernel whose ring is part of
its largest buffer relies on it; `check_ring` reads in what was compiled whether that holds.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def ring_start():
    """The address where Triton's part of shared memory begins, in bytes."""
    return gl.inline_asm_elementwise(
        "mov.u32 $0, global_smem;", "=r", [], dtype=gl.int32, is_pure=True, pack=1
    )


@functools.cache
def check_ring(kernel: Any, size: int) -> None:
    """That Triton itself addresses nothing in the first `size` bytes of a compiled kernel's shared memory.

    Raises:
        RuntimeError: it does; the kernel's results can be wrong.
    """
    code = kernel.asm["llir"].replace("@global_smem = ", "")
    offsets = [int(found or 0) for found in re.findall(r"@global_smem\b(?:, i(?:32|64) (\d+))?", code)]
    if min(offsets, default=0) < size:
        raise RuntimeError(
            f"{kernel.metadata.name}: Triton {triton.__version__} puts a buffer into the first {size} bytes "
            "of shared memory, where the ring of weights is; use a version that the project is tested with"
        )
