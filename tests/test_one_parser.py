from __future__ import annotations

import argparse
import ast
import gc
import inspect
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def threads_change_while_they_parse() -> Iterator[None]:
    """Where garbage is collected, Python code runs, and another thread gets its turn."""

    def notice(phase: str, info: dict[str, int]) -> None:
        for _ in range(5):
            pass

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    gc.callbacks.append(notice)
    yield
    gc.callbacks.remove(notice)
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_change_while_they_parse")
def test_threads_parse_python_at_once() -> None:
    source = inspect.getsource(argparse)

    def parse(_: int) -> int:
        return len(ast.parse(source).body)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(parse, range(8))) == {parse(0)}
