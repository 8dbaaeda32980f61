"""CUDA graphs of decode steps, one set for each of a few batch sizes.

A batch runs in the smallest graph that holds it; the rest of the graph's entries are padding (state row -1),
which reads and writes nothing. Two graphs per size share everything but their end: one samples by temperature
and Gumbel-max and updates the state, so that such a step is one launch; the other stops at the logits, for
batches in which some row asks for more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes to capture: dense where padding would cost most, ending with `max_num_seqs`.

    >>> graph_sizes(40)
    (1, 2, 4, 8, 16, 24, 32, 40)
    """
    sizes = {1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, 513, 32), *range(576, 1 << 14, 64)}
    return tuple(sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs}))


class DecodeGraphs:
    """Captured decode steps."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def size_for(self, batch: int) -> int | None:
        """The smallest captured size that holds `batch` entries, or None."""
        place = bisect_left(self._sizes, batch)
        return self._sizes[place] if place < len(self._sizes) else None

    def capture(self, run: Callable[[int, bool], None]) -> None:
        """Capture `run(size, samples)` for every size with and without sampling.

        `run` is called once before each capture, so that kernels are compiled and libraries have their
        workspaces by then. It must keep its results in tensors that were there before: what it allocates
        belongs to the graphs' common pool, and any other graph's replay may overwrite it.
        """
        for size in reversed(self._sizes):  # the largest first: smaller ones then fit into its memory
            for samples in (False, True):
                run(size, samples)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    run(size, samples)
                self._graphs[size, samples] = graph

    def replay(self, size: int, samples: bool) -> None:
        """Launch a captured step on the current stream."""
        self._graphs[size, samples].replay()
