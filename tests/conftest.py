"""Chooses how Triton kernels run in this session, skips GPU tests where there is no GPU, takes the time limit
off hypothesis' examples, and lets one thread parse Python at a time.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.fast_interpreter import speed_up
from tests.support.one_parser import parse_in_turn

parse_in_turn()


def _has_nvidia_gpu() -> bool:
    # Asked of the driver's device nodes, not of torch: TRITON_INTERPRET counts only before Triton is
    # imported, and importing torch (or transformers) may import it.
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


HAS_GPU = _has_nvidia_gpu()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


# No example has a time limit: on a busy machine any can take long. Profiles without one, such as hypothesis'
# own for CI, stay.
if settings().deadline is not None:
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    skip = pytest.mark.skip(
        reason="no NVIDIA GPU: /dev/nvidiactl is missing or CUDA_VISIBLE_DEVICES is empty"
    )
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_runtest_setup() -> None:
    if not HAS_GPU:
        speed_up()
