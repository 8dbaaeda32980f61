"""The ranks of an engine as a runner on one of them sees them: whom it exchanges which tensors with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Group(Protocol):
    """Ranks that exchange tensors. Each call is made by all of them, in the same order."""

    @property
    def rank(self) -> int:
        """This rank's number in the group, from 0."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over the ranks, in place; the same bits on every rank. Returns it."""

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Every rank's `tensor`, in the ranks' order. Shapes and types are equal on all ranks."""

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Hand `tensor` to one rank, which must call `receive`."""

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Fill `tensor`, of the sent one's shape and type, with what `source` sent. Returns it."""


class Alone:
    """The group of one rank: there is nothing to exchange."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as it is."""
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """The tensor alone."""
        return (tensor,)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Raises RuntimeError: there is nobody else."""
        raise RuntimeError("a group of one rank has nobody to send to")

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Raises RuntimeError: there is nobody else."""
        raise RuntimeError("a group of one rank has nobody to receive from")


@dataclass(frozen=True, slots=True)
class Mesh:
    """One rank's place among all ranks of its engine."""

    rank: int
    size: int
    tensor: Group
    """The ranks that split each layer's weights."""
    context: Group
    """The ranks that split prompts."""
    pipeline: Group
    """The ranks that hold consecutive layers."""

    @property
    def samples(self) -> bool:
        """Whether this rank samples; the others are told its tokens."""
        return self.pipeline.rank == self.pipeline.size - 1 and not (self.tensor.rank or self.context.rank)


ALONE = Mesh(0, 1, Alone(), Alone(), Alone())
"""The place of a runner that has the engine's process to itself."""
