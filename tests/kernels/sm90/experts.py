"""Kernels of experts, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.moe.few_tokens import few_tokens_experts
from dodona.kernels.moe.grouped import choose_grouped_tiles, grouped_experts
from dodona.kernels.moe.routing import route

H200_SHARED_MEMORY = 232_448


def inputs(dtype: torch.dtype, tokens: int, num_experts: int, top_k: int, hidden: int, size: int) -> dict:
    return {
        "x": torch.zeros(tokens, hidden, dtype=dtype),
        "gate_up": torch.zeros(num_experts, 2 * size, hidden, dtype=dtype),
        "down": torch.zeros(num_experts, hidden, size, dtype=dtype),
        "chosen": torch.zeros(tokens, top_k, dtype=torch.int64),
        "routing_weights": torch.zeros(tokens, top_k, dtype=dtype),
        "activation": "silu",
    }


def few(dtype: torch.dtype, top_k: int, hidden: int, size: int) -> None:
    few_tokens_experts(**inputs(dtype, 2, 2, top_k, hidden, size))


def grouped(dtype: torch.dtype, pairs_each: float, hidden: int, size: int) -> None:
    tiles = choose_grouped_tiles(int(64 * pairs_each), 64, dtype.itemsize, H200_SHARED_MEMORY)
    grouped_experts(**inputs(dtype, max(1, int(pairs_each)), 2, 2, hidden, size), tiles=tiles)


def routing() -> None:
    for num_experts, top_k, dtype in ((128, 8, torch.bfloat16), (512, 10, torch.float32)):
        logits = torch.zeros(2, num_experts, dtype=dtype)
        route(logits=logits, top_k=top_k, normalise=True, dtype=dtype)


CASES: dict[str, Callable[[], None]] = {}
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    name = str(dtype).removeprefix("torch.")
    CASES[f"few {name}"] = partial(few, dtype, 8, 2048, 768)
    for each in (0.5, 4, 16, 50, 1000):
        CASES[f"grouped {each} {name}"] = partial(grouped, dtype, each, 2048, 768)
CASES["few, odd sizes"] = partial(few, torch.bfloat16, 6, 2880, 1408)
CASES["grouped, odd sizes"] = partial(grouped, torch.bfloat16, 40, 2880, 1408)
CASES["routing"] = routing
