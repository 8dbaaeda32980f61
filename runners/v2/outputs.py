"""Bringing a step's results to the host without making the device, or the host, wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dodona.kernels.sampling.logprobs import LogprobTensors
from dodona.runners.interface import StepOutput, TokenLogprobs
from dodona.runners.v2.sampling.sampler import host_logprobs


class HostCopier:
    """Copies device tensors to pinned host memory on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        """Host tensors, and the event after which they hold the values that `tensors` have at this point.

        Nothing waits for the copies: until the event, `tensors` must be kept, and none overwritten. The event
        is None on a CPU, where the copies are made at once.
        """
        if self._stream is None:
            return [tensor.clone() for tensor in tensors], None
        self._stream.wait_stream(torch.cuda.current_stream())
        copies = []
        with torch.cuda.stream(self._stream):
            for tensor in tensors:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies.append(host.copy_(tensor, non_blocking=True))
            event = torch.cuda.Event()
            event.record()
        return copies, event


@dataclass(frozen=True, slots=True)
class PromptLogprobRange:
    """Where one row's prompt log-probabilities are among a step's."""

    row: int
    start: int
    end: int
    top_n: int


@dataclass(slots=True, eq=False)
class AsyncOutput:
    """A step under way. `result` waits for its copies only, not for steps behind it."""

    rows: Sequence[int]
    """The rows that sampled, in batch order."""
    token_ids: torch.Tensor
    """[rows] on the host."""
    logprobs: LogprobTensors | None
    """On the host."""
    logprob_rows: Sequence[int]
    """State rows of the entries of `logprobs`."""
    logprob_counts: Sequence[int]
    """How many of the most probable tokens each of them asks for."""
    given_logprobs: LogprobTensors | None
    """On the host: the tokens that these rows ask for by id, all after one another."""
    given_counts: Sequence[int]
    """How many of them are each row's."""
    prompt_logprobs: LogprobTensors | None
    """On the host."""
    prompt_ranges: Sequence[PromptLogprobRange]
    event: torch.cuda.Event | None
    sources: Sequence[torch.Tensor]
    """Device tensors that are being copied: their memory must not be given out again before. Empty once the
    result was read."""

    @property
    def is_read(self) -> bool:
        """Whether `result` was called: nothing of the step is needed on the device any more."""
        return not self.sources

    def result(self) -> StepOutput:
        """Wait for the copies and read them."""
        if self.event is not None:
            self.event.synchronize()
            self.event = None
        self.sources = ()
        logprobs: Mapping[int, TokenLogprobs] = {}
        if self.logprobs is not None:
            entries = host_logprobs(
                self.logprobs, self.logprob_counts, self.given_logprobs, self.given_counts
            )
            logprobs = dict(zip(self.logprob_rows, entries, strict=True))
        prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = {}
        if self.prompt_logprobs is not None:
            counts = [part.top_n for part in self.prompt_ranges for _ in range(part.start, part.end)]
            entries = host_logprobs(self.prompt_logprobs, counts)
            prompt_logprobs = {part.row: entries[part.start : part.end] for part in self.prompt_ranges}
        return StepOutput(self.rows, self.token_ids.tolist(), logprobs, prompt_logprobs)
