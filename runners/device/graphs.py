"""CUDA graphs of steps of fixed form, a few sizes of each.

A step whose launches depend on a size alone, not on what is in the batch, is captured for a few sizes, and
runs in the smallest that holds it: steps of decodes by the number of entries, and steps of one fresh prompt
by the number of its tokens. The remaining entries are padding (state row -1, slot -1) and access no state.
Two graphs per size share everything but their end: one samples by temperature and Gumbel-max and updates the
state, so that such a step is one launch; the other stops at the logits, for batches in which some row asks
for more. Where a model computes long sequences in another way, there are graphs of both ways.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

LONGEST_PROMPT = 512
"""Most tokens of a prompt whose step is captured: the longer it is, the less of its time goes to launches."""


class FixedStep(NamedTuple):
    """A step whose launches are the same each time."""

    size: int
    """Entries of a step of decodes, or tokens of one fresh prompt; padding is among them."""
    samples: bool
    """Whether it draws by the sampler's base stage and updates the state; else it ends with the logits."""
    is_prompt: bool = False
    verifies: bool = False
    """Whether entries may be drafts of the entry before: see `RequestState.set_draft_batch`."""
    has_long: bool = False
    """Whether it is launched as is best with a long sequence: see `StepModel.long_context`."""


KINDS = (FixedStep(0, True), FixedStep(0, True, is_prompt=True), FixedStep(0, True, verifies=True))
"""One step of each kind; its size does not count."""


def decode_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes to capture: dense where padding would cost most, ending with `max_num_seqs`.

    >>> decode_sizes(40)
    (1, 2, 4, 8, 16, 24, 32, 40)
    """
    sizes = {1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, 513, 32), *range(576, 1 << 14, 64)}
    return tuple(sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs}))


def prompt_sizes(max_num_tokens: int) -> tuple[int, ...]:
    """Prompt lengths to capture, ending with the most tokens that a step may have, or `LONGEST_PROMPT`.

    >>> prompt_sizes(100)
    (16, 32, 64, 96, 100)
    """
    most = min(max_num_tokens, LONGEST_PROMPT)
    return tuple(sorted({n for n in (16, 32, 64, 96, 128, 192, 256, 384) if n < most} | {most}))


LARGEST_DRAFT_STEP = 512
"""Most entries of a step with drafts that is captured: with more, launches are a small part of its time."""


def draft_sizes(max_num_seqs: int, num_speculative_tokens: int, max_num_entries: int) -> tuple[int, ...]:
    """Entries of steps with drafts to capture: those of batches of which every row has all its drafts, up to
    `LARGEST_DRAFT_STEP`.

    >>> draft_sizes(16, 4, 80)
    (5, 10, 20, 40, 80)
    """
    most = min(max_num_entries, LARGEST_DRAFT_STEP)
    sizes = {size * (1 + num_speculative_tokens) for size in decode_sizes(max_num_seqs)}
    return tuple(sorted({size for size in sizes if size < most} | {most}))


@dataclass(frozen=True, slots=True)
class FixedSizes:
    """Sizes of the steps that are captured, in rising order."""

    decodes: Sequence[int]
    prompts: Sequence[int]
    drafts: Sequence[int] = ()
    """Entries of steps that verify drafts: a token or a draft each."""

    def of(self, kind: FixedStep) -> Sequence[int]:
        """Sizes of the steps of a kind."""
        return self.prompts if kind.is_prompt else self.drafts if kind.verifies else self.decodes

    def for_drafts(self, num_entries: int) -> int | None:
        """The smallest that holds so many entries, or None."""
        return _smallest(self.drafts, num_entries)

    def for_decodes(self, batch: int) -> int | None:
        """The smallest that holds `batch` entries, or None."""
        return _smallest(self.decodes, batch)

    def for_prompt(self, num_tokens: int) -> int | None:
        """The smallest that holds a prompt of `num_tokens`, or None."""
        return _smallest(self.prompts, num_tokens)


@contextmanager
def capturing(pool: Any = None) -> Iterator[torch.cuda.CUDAGraph]:
    """A graph of what is launched inside, whole afterwards. `pool`: where what it allocates belongs.

    What can't be captured raises torch's error. torch would then leave its side stream as the current one,
    and the device's random generator in a capture, where numbers can't be drawn any more.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield graph
    except BaseException:
        torch.cuda.set_stream(stream)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise


class StepGraphs:
    """Captured steps."""

    def __init__(self, sizes: FixedSizes) -> None:
        self.sizes = sizes
        self._graphs: dict[FixedStep, torch.cuda.CUDAGraph] = {}
        self._drafters: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def capture(
        self, run: Callable[[FixedStep], None], kind: FixedStep, *, long_sizes: Collection[int] = ()
    ) -> None:
        """Capture `run(step)` for every size of steps of this kind (of `kind`, its size and `samples` do not
        count), with and without sampling; those of `long_sizes` also as they are launched with a long
        sequence.

        For each of these, `run` is called once before the captures with sampling, so that kernels are
        compiled and libraries have their workspaces by then. It must keep its results in tensors that were
        there before: what it allocates belongs to the graphs' common pool, and any other graph's replay may
        overwrite it.
        """
        for size in reversed(self.sizes.of(kind)):  # the largest first: smaller ones then fit into its memory
            for has_long in (False, True) if size in long_sizes else (False,):
                run(kind._replace(size=size, samples=True, has_long=has_long))
                torch.cuda.synchronize()
                for samples in (False, True):
                    step = kind._replace(size=size, samples=samples, has_long=has_long)
                    with capturing(self._pool) as graph:
                        run(step)
                    self._graphs[step] = graph

    def capture_drafter(self, run: Callable[[int], None]) -> None:
        """Capture `run(size)` for every size of steps with drafts; see `capture`."""
        for size in reversed(self.sizes.drafts):
            run(size)
            torch.cuda.synchronize()
            with capturing(self._pool) as graph:
                run(size)
            self._drafters[size] = graph

    def replay_drafter(self, size: int) -> None:
        """Launch the captured drafter after a step with `size` entries, on the current stream."""
        self._drafters[size].replay()

    def replay(self, step: FixedStep) -> None:
        """Launch a captured step on the current stream."""
        self._graphs[step].replay()


class LaunchedSteps(StepGraphs):
    """Steps of the same fixed forms, launched kernel by kernel: what graphs of them are compared with."""

    def __init__(self, sizes: FixedSizes, run: Callable[[FixedStep], None]) -> None:
        self.sizes = sizes
        self._run = run

    def replay(self, step: FixedStep) -> None:
        """Launch the kernels of a step on the current stream."""
        self._run(step)


def _smallest(sizes: Sequence[int], least: int) -> int | None:
    place = bisect_left(sizes, least)
    return sizes[place] if place < len(sizes) else None
