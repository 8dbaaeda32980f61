"""Adapters of steps that run from state on the device: which one each state row has is there, too."""

from __future__ import annotations

import numpy as np
import torch

from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.interface import SchedulerOutput
from dodona.runners.lora.adapter import Adapter
from dodona.runners.v1.lora import NO_SLOT, LoRALayers
from dodona.runners.v1.step_layout import to_device


class DeviceAdapters:
    """The adapters of the requests that have a state row, in their slots of `layers`.

    Args:
        layers: of the model.
        num_rows: state rows.
        device: where the steps run.
    """

    def __init__(self, layers: LoRALayers, *, num_rows: int, device: torch.device) -> None:
        self.layers = layers
        self._adapters: dict[int, Adapter] = {}
        """By state row."""
        self._slots = torch.full((num_rows + 1,), NO_SLOT, dtype=torch.int32, device=device)
        """By state row; the last is that of padding, whose row is -1."""

    def update(self, step: SchedulerOutput) -> None:
        """Bring what the step changes to the device, before it is launched. Earlier steps under way keep
        theirs: they come first in the stream."""
        before = dict(self._adapters)
        for row in step.freed_rows:
            self._adapters.pop(row, None)
        for request in step.new_requests:
            self._adapters.pop(request.row, None)
            if request.adapter is not None:
                self._adapters[request.row] = request.adapter
        if self._adapters == before:
            return
        self.layers.place(self._adapters.values())
        slots = np.full(len(self._slots), NO_SLOT, dtype=np.int32)
        for row, adapter in self._adapters.items():
            slots[row] = self.layers.slot(adapter)
        with torch.inference_mode():
            self._slots.copy_(to_device(slots, self._slots.device))

    def forget_rows(self) -> None:
        """No state row has an adapter any more. Those in the layers stay."""
        self._adapters.clear()
        with torch.inference_mode():
            self._slots.fill_(NO_SLOT)

    def slots_of(self, inputs: ForwardInputs) -> torch.Tensor:
        """[tokens] int32: the slot of each token's adapter. Nothing is read on the host."""
        rows = inputs.rows
        if inputs.num_tokens != len(rows):
            tokens = torch.arange(inputs.num_tokens, dtype=torch.int32, device=rows.device)
            sequences = torch.searchsorted(inputs.query_start[1:], tokens, right=True)
            # Padding after a prompt is of no sequence.
            rows = rows[sequences.clamp_max(len(rows) - 1)]
        return self._slots[rows.long()]
