"""Causal attention masks as values: which earlier positions a query position sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""transformers' elementwise form of a mask: (batch, head, query index, key index) -> bool."""


@dataclass(frozen=True, slots=True)
class AttentionPattern:
    """A query at position p sees the positions `first_visible(p) .. p`.

    `causal`: all from 0. `sliding`: the `size` most recent ones, p included. `chunked`: from the start of p's
    chunk of `size` positions.
    """

    kind: Literal["causal", "sliding", "chunked"] = "causal"
    size: int = 0
    """Window or chunk in tokens (>= 1); 0 where the kind is causal."""

    def __post_init__(self) -> None:
        if (self.kind == "causal") != (self.size == 0) or self.size < 0:
            raise ValueError(
                f"{self.kind} attention pattern of size {self.size}: expected a positive size unless causal"
            )

    def first_visible(self, position: Any) -> Any:
        """First position seen from `position` (int, numpy array or torch tensor; same type back)."""
        if self.kind == "causal":
            return position * 0
        if self.kind == "chunked":
            return position - position % self.size
        first = position - (self.size - 1)
        return first * (first > 0)

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Boolean mask: which key positions the query positions see. The two broadcast."""
        first: torch.Tensor = self.first_visible(query)
        return (key <= query) & (key >= first)


CAUSAL = AttentionPattern()


_CPU = torch.device("cpu")


def recognise(
    mask_function: MaskFunction, local_size: int | None, device: torch.device = _CPU
) -> AttentionPattern | None:
    """The pattern that `mask_function` computes on `device`, or None where it is not an `AttentionPattern`.

    The function is evaluated on both sides of every edge of a window or chunk of `local_size` (None: no local
    attention). So the result holds for every prompt length, also beyond that of the self-check.
    """
    if local_size is not None and local_size < 1:
        return None
    if local_size is None:
        candidates = [CAUSAL]
        edges = [1 << n for n in range(0, 21, 2)]
    else:
        candidates = [AttentionPattern("sliding", local_size), AttentionPattern("chunked", local_size)]
        edges = [0, local_size, 2 * local_size, 5 * local_size]
    near = {max(0, e + d) for e in edges for d in (-2, -1, 0, 1, 2)} | {0, 1, 2, 3}
    positions = torch.tensor(sorted(near), device=device)
    query, key = positions[:, None], positions[None, :]
    zero = torch.tensor(0, device=device)
    try:
        seen = torch.as_tensor(mask_function(zero, zero, query, key)).to(device, torch.bool)
        seen = seen.expand(len(positions), len(positions))
    except Exception:  # the model's own mask, which indexes its tensors: not elementwise, so not a pattern
        return None
    return next((p for p in candidates if torch.equal(p.visible(query, key), seen)), None)
