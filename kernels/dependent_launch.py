"""Programmatic dependent launch: a kernel may begin while the one before it on the stream still runs.

A kernel that takes part calls `let_next_start` at its beginning, and `wait_for_inputs` before it reads or
writes anything that the kernels shortly before it touch. As some of its programs wait, a kernel that has
ended implies that all before it have; so not every kernel need take part. Data from before, such as weights,
may be read before the wait. This is the benefit.
"""

from __future__ import annotations

import functools

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def let_next_start():
    """Allow the stream's next kernel to start as soon as there is room for it."""
    tl_cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs():
    """Wait until the stream's kernels before this one have ended and their writes are visible."""
    tl_cuda.gdc_wait()


@gluon.jit
def let_next_start_gluon():
    """`let_next_start` for Gluon's kernels."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def wait_for_inputs_gluon():
    """`wait_for_inputs` for Gluon's kernels."""
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@functools.cache
def supports_dependent_launch(device: torch.device) -> bool:
    """Whether kernels on `device` can be launched so: compute capability 9.0 and above."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(dependent: bool) -> dict[str, bool]:
    """Options of a kernel's launch; none where it does not take part (only NVIDIA's backend knows the
    option)."""
    return {"launch_pdl": True} if dependent else {}
