"""How many bytes are left for KV blocks, by measuring what steps need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch

from dodona.runners.device.host_memory import left_beside, share_of_host
from dodona.runners.limits import Limits
from dodona.runners.machine import torch_environment

CPU_KV_LIMIT = 1 << 30
"""Most bytes for KV blocks on a CPU, where V2 runs in Triton's interpreter, for tests."""


def measure_available_memory(
    device: torch.device,
    *,
    limits: Limits,
    largest_step: Callable[[], None],
    captured: Sequence[Callable[[], None]],
) -> int:
    """Bytes for KV blocks: the limits' share of the device's memory, less what is taken and what steps take.

    The largest step's peak counts once, and so does each of `captured`, the largest steps of which graphs
    will be captured: graphs keep memory of their own. All are run here. On a CPU: `host_memory.left_beside`,
    at most `CPU_KV_LIMIT`.
    """
    utilization = limits.gpu_memory_utilization
    if device.type != "cuda":
        return max(0, min(left_beside(largest_step, utilization, limits.ranks_on_host), CPU_KV_LIMIT))
    needed = sum(_peak(device, run) for run in (largest_step, *captured))
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(total * utilization) - (total - free) - needed)


def most_available_memory(limits: Limits, weights: Iterable[torch.Tensor]) -> int:
    """No less than `measure_available_memory` of a model with these weights, of which only the sizes matter:
    nothing runs, and no device is asked. What its memory has in use beside them isn't known.
    """
    if limits.device != "cuda":
        return min(share_of_host(limits.gpu_memory_utilization, limits.ranks_on_host), CPU_KV_LIMIT)
    total = (torch_environment(limits.device).memory or math.inf) * 2**30 * limits.gpu_memory_utilization
    sizes = {id(tensor): tensor.numel() * tensor.itemsize for tensor in weights}
    return 2**62 if math.isinf(total) else max(0, int(total) - sum(sizes.values()))


def _peak(device: torch.device, run: Callable[[], None]) -> int:
    """Most bytes that `run` had allocated at a time, above what was allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
