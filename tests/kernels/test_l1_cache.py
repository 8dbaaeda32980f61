"""Kernels that ask for a large L1 cache when Triton has loaded them."""

from __future__ import annotations

import logging

import pytest
import torch
import triton

from dodona.kernels import l1_cache
from dodona.kernels.linear.quantized_small_batch_linear import _quantized_small_batch_linear_kernel
from dodona.kernels.linear.rms_norm import _rms_norm_kernel
from dodona.kernels.linear.single_token_linear import _matvec_kernel, single_token_linear
from dodona.kernels.linear.small_batch_linear import _small_batch_linear_kernel, small_batch_linear


class Driver:
    """Stands for CUDA's driver, and keeps what it was asked."""

    def __init__(self, result: int) -> None:
        self.result = result
        self.asked: list[tuple[int | None, ...]] = []

    def cuFuncSetCacheConfig(self, function, config) -> int:
        self.asked.append((function.value, config))
        return self.result

    def cuFuncSetAttribute(self, function, attribute, value) -> int:
        self.asked.append((function.value, attribute, value))
        return self.result


def load(name: str, function: int) -> None:
    """What Triton does once it has loaded a kernel."""
    triton.knobs.runtime.kernel_load_end_hook(1, function, name, {}, "hash")


KERNELS = (_matvec_kernel, _small_batch_linear_kernel, _quantized_small_batch_linear_kernel)


def test_products_whose_loads_pass_through_it_ask(monkeypatch):
    driver = Driver(0)
    monkeypatch.setattr(l1_cache, "_driver", lambda: driver)
    for function, kernel in enumerate(KERNELS, 2**40):
        load(kernel.fn.__name__, function)
    load(_rms_norm_kernel.fn.__name__, 3)
    load("of_someone_else", 4)
    assert driver.asked == [(2**40, 2), (2**40 + 1, 9, 7), (2**40 + 2, 2)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_refusal_is_told_and_ends_nothing(monkeypatch, caplog, kernel):
    monkeypatch.setattr(l1_cache, "_driver", lambda: Driver(500))
    with caplog.at_level(logging.WARNING):
        load(kernel.fn.__name__, 1)
    assert f"{kernel.fn.__name__}: " in caplog.text
    assert "CUresult 500" in caplog.text


@pytest.mark.gpu
def test_the_driver_takes_it(monkeypatch):
    driver, results = l1_cache._driver(), []

    class Noting:
        def cuFuncSetCacheConfig(self, function, config) -> int:
            results.append(driver.cuFuncSetCacheConfig(function, config))
            return results[-1]

        def cuFuncSetAttribute(self, function, attribute, value) -> int:
            results.append(driver.cuFuncSetAttribute(function, attribute, value))
            return results[-1]

    monkeypatch.setattr(l1_cache, "_driver", Noting)
    for kernel, product, rows in (
        (_small_batch_linear_kernel, small_batch_linear, 3),
        (_matvec_kernel, single_token_linear, 1),
    ):
        kernel.device_caches.clear()
        x, weight = (torch.ones(n, 1024, dtype=torch.bfloat16, device="cuda") for n in (rows, 64))
        assert (product(x=x, weight=weight) == 1024).all()
    assert results == [0, 0]
