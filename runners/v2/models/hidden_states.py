"""Hidden states of a step that a draft head looks at."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch

from dodona.kernels.state.copy_rows import copy_rows

LAST_HIDDEN_STATE = -1
"""In place of a layer: the model's output after its last norm."""
FEW_ROWS = 16
"""Most rows that `copy_rows` copies. The kernels of small batches start early, and torch's copy would make
them wait."""


class HiddenStates:
    """Hidden states of the latest forward pass, side by side, where a captured graph finds them again.

    Args:
        layer_ids: whose input is kept; the number of layers means the last one's output, `LAST_HIDDEN_STATE`
            what comes after the last norm.
        hidden_size: the model's.
        max_num_tokens: most tokens of a step.
        dtype, device: the model's.
    """

    def __init__(
        self,
        layer_ids: Sequence[int],
        *,
        hidden_size: int,
        max_num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.values = torch.zeros((max_num_tokens, len(layer_ids) * hidden_size), dtype=dtype, device=device)
        """[max_num_tokens, layers * hidden_size]."""
        self._layer_ids = tuple(layer_ids)
        self._hidden_size = hidden_size

    @property
    def layers(self) -> Container[int]:
        """Those whose states are kept."""
        return self._layer_ids

    def keep(self, layer: int, states: torch.Tensor) -> None:
        """Copy the states [tokens, hidden_size], contiguous, of one of `layers`."""
        for index, kept in enumerate(self._layer_ids):
            if kept == layer:
                begin = index * self._hidden_size
                place = self.values[: states.shape[0], begin : begin + self._hidden_size]
                if len(states) <= FEW_ROWS:
                    copy_rows(source=states, target=place)
                else:
                    place.copy_(states)
