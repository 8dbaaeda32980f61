"""One rank of an engine without the others, for a trial load: what they would send has the shapes of what is
here, and no values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dodona.runners.distributed.mesh import Alone, Group, Mesh
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.interface import KVPart

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ImaginedGroup:
    """A group of which only this rank is there; see `mesh.Group`."""

    rank: int
    size: int

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as it is."""
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """The tensor, once for each rank."""
        return (tensor,) * self.size

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Nothing."""

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor as it is."""
        return tensor


def first_of_stage(sizes: RankSizes, stage: int) -> Mesh:
    """The place of a pipeline stage's first rank. It keeps what the others of its stage do, or more: their
    shares are equal in size, and of the last stage it is the one that drafts."""
    rank = stage * sizes.context * sizes.tensor
    tensor, context = _group(0, sizes.tensor), _group(0, sizes.context)
    return Mesh(rank, sizes.world, tensor, context, _group(stage, sizes.pipeline))


def parts_of_stages(first: Sequence[KVPart]) -> list[KVPart]:
    """The parts of a KV block that an engine has, each once, from those of the stages' first ranks, which
    know only their own layers."""
    held = [part.layers[part.first_layer : part.first_layer + part.num_layers] for part in first]
    layers = tuple(layer for stage in held for layer in stage)
    begins = [sum(map(len, held[:stage])) for stage in range(len(held))]
    return [
        replace(part, layers=layers, first_layer=begin, head_share=share)
        for part, begin in zip(first, begins, strict=True)
        for share in range(part.head_shares)
    ]


def _group(rank: int, size: int) -> Group:
    return Alone() if size == 1 else ImaginedGroup(rank, size)
