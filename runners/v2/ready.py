"""Everything that steps work with, beside the model: made whole once the KV cache's size is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dodona.runners.limits import Limits
from dodona.runners.v2.batches import BatchBuilder
from dodona.runners.v2.graphs import StepGraphs
from dodona.runners.v2.loading.loaded import Loaded
from dodona.runners.v2.outputs import HostCopier
from dodona.runners.v2.sampling.sampler import V2Sampler
from dodona.runners.v2.state import RequestState
from dodona.runners.v2.step import StepRunner


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A runner's parts that can step."""

    max_model_len: int
    """Tokens that a state row has room for."""
    state: RequestState
    sampler: V2Sampler
    steps: StepRunner
    """Over `state` and `sampler`."""
    builder: BatchBuilder
    copier: HostCopier
    graphs: StepGraphs | None = None
    """None: steps are launched kernel by kernel."""


def make_ready(
    loaded: Loaded,
    limits: Limits,
    *,
    num_blocks: int,
    max_model_len: int,
    max_steps_in_flight: int,
    device: torch.device,
) -> Ready:
    """Allocate `num_blocks` KV blocks, the requests' state for sequences of `max_model_len`, and the buffers
    that steps work in."""
    spec = loaded.spec
    state = RequestState(
        max_num_seqs=limits.max_num_seqs,
        max_model_len=max_model_len,
        block_size=limits.block_size,
        device=device,
    )
    sampler = V2Sampler(
        max_num_seqs=limits.max_num_seqs, vocab_size=spec.vocab_size, token_ids=state.token_ids
    )
    shape = (num_blocks, 2, spec.num_kv_heads, limits.block_size, spec.head_size)
    # One allocation per layer: torch zeroes each once, and a layer's blocks are contiguous.
    kv_caches = [torch.zeros(shape, dtype=spec.dtype, device=device) for _ in range(spec.num_layers)]
    steps = StepRunner(
        model=loaded.model,
        state=state,
        sampler=sampler,
        kv_caches=kv_caches,
        max_num_seqs=limits.max_num_seqs,
        max_num_tokens=max(limits.max_num_batched_tokens, limits.max_num_seqs),
        max_steps_in_flight=max_steps_in_flight,
    )
    return Ready(max_model_len, state, sampler, steps, BatchBuilder(steps), HostCopier(device))
