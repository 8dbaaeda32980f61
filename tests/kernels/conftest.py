"""Fixtures for kernel tests: the device, and the dtypes that kernels can be trusted in there."""

from __future__ import annotations

import os

import pytest
import torch

from dodona.kernels.devices import is_hopper

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
"""bf16 is silently wrong in Triton's interpreter."""


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """What `torch.testing.assert_close` may allow: a few roundings of the dtype."""
    return {
        torch.float32: {"rtol": 1e-5, "atol": 1e-5},
        torch.float16: {"rtol": 2e-3, "atol": 2e-3},
        torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
    }[dtype]


@pytest.fixture
def generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(20240607)


@pytest.fixture
def hopper() -> torch.device:
    """A GPU of compute capability 9.x."""
    device = torch.device("cuda", torch.cuda.current_device())
    if not is_hopper(device):
        pytest.skip("needs a GPU of compute capability 9.x")
    return device
