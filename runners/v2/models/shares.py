"""Parts of tensors, as ranks that split layers hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorShare:
    """One of the equal parts into which a tensor is cut along a dimension."""

    dim: int
    parts: int
    index: int

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that a part of `shape` is cut from."""
        return tuple(size * self.parts if dim == self.dim else size for dim, size in enumerate(shape))

    def place(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where the part, of `shape`, is in the whole tensor."""
        size = shape[self.dim]
        start = self.index * size
        return (slice(None),) * self.dim + (slice(start, start + size),)
