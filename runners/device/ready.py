"""Everything that steps work with, beside the model: made whole once the KV cache's size is known."""

from __future__ import annotations

from dataclasses import dataclass

from dodona.runners.device.batches import BatchBuilder
from dodona.runners.device.drafting import DeviceDrafting
from dodona.runners.device.graphs import StepGraphs
from dodona.runners.device.model import StepModel
from dodona.runners.device.outputs import HostCopier
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.state import RequestState
from dodona.runners.device.step import StepRunner
from dodona.runners.device.step_drafts import StepDrafts
from dodona.runners.limits import Limits


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A runner's parts that can step."""

    num_blocks: int
    max_model_len: int
    """Tokens that a state row has room for."""
    state: RequestState
    sampler: DeviceSampler
    steps: StepRunner
    """Over `state` and `sampler`."""
    builder: BatchBuilder
    copier: HostCopier
    drafts: StepDrafts | None = None
    """None: nothing drafts on the device."""
    graphs: StepGraphs | None = None
    """None: steps are launched kernel by kernel."""


def max_entries(limits: Limits, num_speculative_tokens: int) -> int:
    """Most entries of a batch: rows, and the drafts that they verify."""
    most_tokens = max(limits.max_num_batched_tokens, limits.max_num_seqs)
    return min(limits.max_num_seqs * (1 + num_speculative_tokens), most_tokens)


def make_ready(
    model: StepModel,
    limits: Limits,
    *,
    num_blocks: int,
    max_model_len: int,
    max_steps_in_flight: int,
    num_speculative_tokens: int = 0,
    drafting: DeviceDrafting | None = None,
) -> Ready:
    """Allocate `num_blocks` KV blocks, the requests' state for sequences of `max_model_len`, and the buffers
    that steps work in, with up to `num_speculative_tokens` drafts of each row."""
    device = model.device
    max_num_entries = max_entries(limits, num_speculative_tokens)
    state = RequestState(
        max_num_seqs=limits.max_num_seqs,
        max_model_len=max_model_len,
        block_size=limits.block_size,
        device=device,
        max_num_entries=max_num_entries,
        own_blocks=0 if drafting is None else drafting.own_blocks,
        first_own_block=num_blocks,
    )
    sampler = DeviceSampler(
        max_num_seqs=limits.max_num_seqs, vocab_size=model.vocab_size, token_ids=state.token_ids
    )
    caches = model.make_caches(num_blocks, limits.block_size, limits.max_num_seqs)
    steps = StepRunner(
        model=model,
        state=state,
        sampler=sampler,
        kv_caches=caches,
        block_size=limits.block_size,
        max_num_entries=max_num_entries,
        max_num_tokens=max(limits.max_num_batched_tokens, limits.max_num_seqs),
        max_steps_in_flight=max_steps_in_flight,
        num_speculative_tokens=num_speculative_tokens,
    )
    drafts, entries_per_row = None, 1
    if drafting is not None:
        entries_per_row = 1 + num_speculative_tokens
        drafts = StepDrafts(
            drafting.start(state, sampler, limits, num_blocks=num_blocks),
            steps,
            max_num_seqs=limits.max_num_seqs,
            num_speculative_tokens=num_speculative_tokens,
        )
    builder = BatchBuilder(steps, entries_per_row=entries_per_row)
    return Ready(num_blocks, max_model_len, state, sampler, steps, builder, HostCopier(device), drafts)
