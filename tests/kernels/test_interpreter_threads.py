"""Threads may launch interpreted kernels at once, as an engine's thread and a test's do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dodona.kernels.state.copy_rows import copy_rows
from tests.kernels.conftest import INTERPRETED


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_launches_of_threads_do_not_disturb_one_another() -> None:
    def copies(number: int) -> bool:
        source = torch.full((8, 64), float(number))
        target = torch.zeros(8, 64)
        for _ in range(40):
            copy_rows(source=source, target=target)
        return torch.equal(source, target)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(copies, range(1, 5)))
