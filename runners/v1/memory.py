"""Measures how many bytes the largest step leaves for KV blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dodona.runners.device import memory as device_memory
from dodona.runners.device.host_memory import left_beside, share_of_host
from dodona.runners.limits import Limits
from dodona.runners.sampling import reference as sampling
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.served_model import ServedModel
from dodona.runners.v1.state_slots import StepStates
from dodona.runners.v1.step_layout import MAX_GATHERED_TOKENS, StepLayout

_PROFILE_ROW = sampling.SamplingRow(
    params=SamplingParams(temperature=1.0, top_p=0.9), prompt_token_ids=(0,), output_token_ids=(), seed=0
)

CPU_KV_LIMIT = 4 << 30
"""Most bytes that KV blocks take on a CPU unless `kv_cache_memory_bytes` says otherwise."""


def measure_available_memory(
    profile: Callable[[], None],
    device: torch.device,
    *,
    limits: Limits,
    most_useful: int,
    state_bytes: int = 0,
) -> int:
    """Bytes for inner states and KV blocks after running `profile` (the largest step) once.

    CUDA: the limits' share of the device's memory, less the memory in use, less the step's measured peak
    above that. CPU: `host_memory.left_beside`; for KV blocks at most `CPU_KV_LIMIT`. Never more than the
    states of all rows (`state_bytes`) and the KV blocks of all requests at full length (`most_useful`) take.
    """
    utilization = limits.gpu_memory_utilization
    if device.type == "cuda":
        available = _cuda(profile, device, utilization)
    else:
        left = left_beside(profile, utilization, limits.ranks_on_host)
        available = min(left, CPU_KV_LIMIT + state_bytes)
    return max(0, min(available, most_useful + state_bytes))


def most_available_memory(
    limits: Limits, *, weights: torch.nn.Module, host_bytes: int, most_useful: int, state_bytes: int
) -> int:
    """No less than `measure_available_memory` of a model with these weights, of which only the sizes
    matter; on a CPU the same, unless the largest step doesn't fit beside it.

    host_bytes: what weights take at least of a CPU's memory, on each rank."""
    if limits.device == "cuda":
        available = device_memory.most_available_memory(limits, weights.parameters())
    else:
        ranks = limits.ranks_on_host
        share = share_of_host(limits.gpu_memory_utilization, ranks, taken=ranks * host_bytes)
        available = min(share, CPU_KV_LIMIT + state_bytes)
    return max(0, min(available, most_useful + state_bytes))


def run_largest_step(model: ServedModel, limits: Limits, *, of_stages: bool = False) -> None:
    """Prefill and sample for as many tokens as a step may hold, then decode with the longest context.

    All rows share one KV block and one slot of inner states: only the sizes of what is computed matter. Row
    by row, the largest step is that of one row with the longest context, on a CPU with as many tokens as a
    step may hold.

    of_stages: whether the model is one of several pipeline stages, which hand on what they compute: all take
    the same steps, whichever of them has inner states.
    """
    if not model.packs_rows:
        _run_largest_row(model, limits)
        return
    device, block_size, longest = model.device, limits.block_size, limits.max_model_len
    cache, slots = model.make_cache(1, block_size), model.make_state_slots(1)
    whole, rest = divmod(limits.max_num_batched_tokens, longest)
    prompts = ([longest] * whole + [rest] * (rest > 0))[: limits.max_num_seqs]
    # A chunk at the end of a full context reads the most; on a CPU that would take minutes.
    computed = [longest - n if device.type == "cuda" else 0 for n in prompts]
    decodes = max(1, min(limits.max_num_seqs, MAX_GATHERED_TOKENS // longest))
    steps = [(prompts, computed), ([1] * decodes, [longest - 1] * decodes)]
    if model.has_states or of_stages:  # states' memory grows with the rows, not with the context
        steps.append(([1] * limits.max_num_seqs, [1] * limits.max_num_seqs))
    for num_tokens, num_computed in steps:
        tables = np.zeros((len(num_tokens), -(-longest // block_size)), dtype=np.int64)
        layout = StepLayout(num_tokens, num_computed, tables, block_size, device)
        ids = torch.zeros(layout.total_tokens, dtype=torch.int64, device=device)
        sampled = min(layout.total_tokens, limits.max_num_seqs)
        states = None
        if model.has_states:  # a prompt as a fresh one: with a state, some mixers compute token by token
            state_computed = [0] * len(prompts) if num_tokens is prompts else num_computed
            rows = [0] * len(num_tokens)
            states = StepStates(slots, rows, num_tokens, state_computed, rows)
        logits = model.forward(ids, layout, cache, torch.arange(sampled, device=device), states)
        with torch.inference_mode():
            sampling.sample(logits, [_PROFILE_ROW] * sampled)


def _run_largest_row(model: ServedModel, limits: Limits) -> None:
    device, size, longest = model.device, limits.max_num_batched_tokens, limits.max_model_len
    cache = model.make_cache(1, limits.block_size)
    tables = np.zeros((1, -(-longest // limits.block_size)), dtype=np.int64)
    last = longest if device.type == "cuda" else min(size, longest)
    for start in range(0, last, size):
        count = min(size, last - start)
        layout = StepLayout([count], [start], tables, limits.block_size, device)
        ids = torch.zeros(count, dtype=torch.int64, device=device)
        logits = model.forward(ids, layout, cache, torch.tensor([count - 1], device=device))
    with torch.inference_mode():
        rows = min(size, limits.max_num_seqs)
        sampling.sample(logits.repeat(rows, 1), [_PROFILE_ROW] * rows)


def _cuda(profile: Callable[[], None], device: torch.device, utilization: float) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    profile()
    torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(total * utilization) - (total - free) - activations
