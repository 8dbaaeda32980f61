"""Bringing a step's results to the host without making the device, or the host, wait."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from dodona.kernels.state.host_copies import copy_to_host
from dodona.runners.device.sampling.logprob_values import SampledLogprobs
from dodona.runners.device.sampling.prompt_logprobs import PromptLogprobs
from dodona.runners.drafting.acceptance import accepted_output
from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.interface import PendingOutput, StepOutput
from dodona.runners.sampling.token_logprobs import TokenLogprobs

Tree = TypeVar("Tree")
"""A tensor, or a dataclass whose fields are trees or values without tensors."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepResults:
    """What a step yields, its tensors all on the device or all on the host."""

    rows: Sequence[int]
    """The state rows that sampled, in batch order."""
    token_ids: torch.Tensor
    """[rows] int32, or more where drafts were verified; then it may be [entries, 2], with `num_kept` beside
    each."""
    logprobs: SampledLogprobs | None = None
    prompt_logprobs: PromptLogprobs | None = None
    drafts: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    """By row, those that were verified; then `token_ids` has 1 + k of a row with k drafts."""
    num_kept: torch.Tensor | None = None
    """[entries] int32 with drafts: at a row's first token how many of its tokens are kept."""

    def step_output(self) -> StepOutput:
        """The same in lists. Its tensors must be on the host."""
        if self.drafts and self.token_ids.dim() == 2:
            token_ids, num_kept = self.token_ids.t().tolist()
            return self._speculative_output(token_ids, num_kept)
        if self.num_kept is not None:
            return self._speculative_output(self.token_ids.tolist(), self.num_kept.tolist())
        return StepOutput(
            self.rows,
            self.token_ids.tolist(),
            {} if self.logprobs is None else self.logprobs.by_row(),
            {} if self.prompt_logprobs is None else self.prompt_logprobs.by_row(),
        )

    def _speculative_output(self, token_ids: list[int], num_kept: list[int]) -> StepOutput:
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        if self.logprobs is not None:
            entries = iter(self.logprobs.entries())
            asking = set(self.logprobs.rows)
            places = [row for row in self.rows for _ in range(1 + len(self.drafts.get(row, ())))]
            logprobs = [next(entries) if row in asking else None for row in places]
        prompt_logprobs = {} if self.prompt_logprobs is None else self.prompt_logprobs.by_row()
        return accepted_output(self.rows, self.drafts, token_ids, logprobs, prompt_logprobs, num_kept)


class HostCopier:
    """Copies device tensors to pinned host memory on a stream of its own, which the device serves first."""

    def __init__(self, device: torch.device) -> None:
        self._stream = (
            torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )
        self._under_way: deque[tuple[torch.cuda.Event, object]] = deque()
        """What copies write into, the oldest first. Kernels write it, of which torch's allocator of pinned
        memory does not know: memory that was given back too early would be overwritten in other hands."""

    def copy(self, tree: Tree) -> tuple[Tree, torch.cuda.Event | None]:
        """The same tree with host tensors, and the event after which they hold the values that those of
        `tree` have at this point.

        Nothing waits for the copies: until the event, `tree` must be kept, and none of its tensors
        overwritten. The event is None on a CPU, where the copies are made at once.
        """
        if self._stream is None:
            return map_tensors(tree, torch.clone), None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies = map_tensors(tree, _start_copy)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        while self._under_way and self._under_way[0][0].query():  # type: ignore[no-untyped-call]
            self._under_way.popleft()
        self._under_way.append((event, copies))
        return copies, event


class AsyncOutput:
    """A step under way. `result` waits for its copies only, not for steps behind it."""

    def __init__(self, results: StepResults, copier: HostCopier) -> None:
        """Start the copies of `results`, on the device, which is kept until they are done."""
        self._on_device: StepResults | None = results
        self._on_host, self._event = copier.copy(results)

    @property
    def is_read(self) -> bool:
        """Whether `result` was called: nothing of the step is needed on the device any more."""
        return self._on_device is None

    def result(self) -> StepOutput:
        """Wait for the copies and read them."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        # Only now may the device's memory be given to other tensors.
        self._on_device = None
        return self._on_host.step_output()


@dataclasses.dataclass(frozen=True, slots=True)
class WithDeviceDrafts:
    """A step under way after which the device drafts, for all rows that sample. Its result does not wait for
    the drafts."""

    pending: PendingOutput
    count: int
    """Drafts of each row."""
    ids: AsyncDrafts | None
    """None where nobody will ask for them."""

    def result(self) -> StepOutput:
        """Wait for the step, as `AsyncOutput.result`."""
        output, ids = self.pending.result(), self.ids
        drafts: Mapping[int, Sequence[int]]
        if ids is None:
            drafts = dict.fromkeys(output.rows, DeviceDrafts(self.count))
        else:
            drafts = {
                row: DeviceDrafts(self.count, functools.partial(ids.of, place))
                for place, row in enumerate(output.rows)
            }
        return dataclasses.replace(output, draft_token_ids=drafts)


class AsyncDrafts:
    """Drafts [rows, k] int32 on their way to the host."""

    def __init__(self, proposed: torch.Tensor, copier: HostCopier) -> None:
        """Start their copy. Nothing may overwrite `proposed`, on the device, which is kept until then."""
        self._on_device: torch.Tensor | None = proposed
        self._on_host, self._event = copier.copy(proposed)

    def of(self, place: int) -> list[int]:
        """Wait for them; those of the row at this place of the step's. What could not be drawn is token 0."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        self._on_device = None
        found: list[int] = self._on_host[place].clamp(min=0).tolist()
        return found


def map_tensors(tree: Tree, function: Callable[[torch.Tensor], torch.Tensor]) -> Tree:
    """The same tree, with `function` of each of its tensors. Values that are no dataclasses stay as they
    are."""
    if isinstance(tree, torch.Tensor):
        return function(tree)  # type: ignore[return-value]
    kind: type = type(tree)
    names = _field_names(kind)
    if not names:
        return tree
    return type(tree)(*[map_tensors(getattr(tree, name), function) for name in names])


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    """A dataclass's fields, in the order of its arguments; none for other types."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple(field.name for field in dataclasses.fields(kind))


def _start_copy(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in pinned host memory, once the current stream is there."""
    return copy_to_host(x=tensor, out=torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
