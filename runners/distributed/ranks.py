"""Which part of the work each rank of an engine takes: arithmetic on the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dodona.oracle.config.sections import ParallelConfig


@dataclass(frozen=True, slots=True)
class RankSizes:
    """How many ranks split the layers, the prompts and each layer's weights.

    Ranks are numbered as vLLM numbers them: the tensor rank runs fastest, then the context rank, then the
    pipeline stage.
    """

    pipeline: int
    context: int
    tensor: int

    @classmethod
    def of(cls, config: ParallelConfig) -> RankSizes:
        """The sizes of one replica."""
        return cls(
            config.pipeline_parallel_size, config.prefill_context_parallel_size, config.tensor_parallel_size
        )

    @property
    def world(self) -> int:
        """All ranks of one replica."""
        return self.pipeline * self.context * self.tensor

    @property
    def sampling_rank(self) -> int:
        """The rank that samples and answers: the first one of the last pipeline stage."""
        return (self.pipeline - 1) * self.context * self.tensor

    def tensor_groups(self) -> Sequence[tuple[int, ...]]:
        """The ranks that split each layer with each other, for every such group."""
        return [tuple(range(start, start + self.tensor)) for start in range(0, self.world, self.tensor)]

    def context_groups(self) -> Sequence[tuple[int, ...]]:
        """The ranks that split prompts with each other."""
        stage = self.context * self.tensor
        return [
            tuple(range(start + offset, start + offset + stage, self.tensor))
            for start in range(0, self.world, stage)
            for offset in range(self.tensor)
        ]

    def pipeline_groups(self) -> Sequence[tuple[int, ...]]:
        """The ranks that hold consecutive layers, first stage first."""
        stage = self.context * self.tensor
        return [tuple(range(offset, self.world, stage)) for offset in range(stage)]
