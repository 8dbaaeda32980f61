"""What a draft head sees of its target: hidden states of a forward pass, by hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dodona.oracle.errors import UnsupportedConfiguration


class HiddenStates:
    """Hidden states of a model's last forward pass, [1, T, size] each.

    layer_ids: whose input is kept; the number of layers means the last one's output. None of them: the last
    hidden state, after the model's norm. Raises UnsupportedConfiguration where the model's layers aren't
    found.
    """

    def __init__(self, model: nn.Module, layer_ids: tuple[int, ...]) -> None:
        self._kept: list[Tensor | None] = [None] * max(1, len(layer_ids))
        decoder, layers = _decoder(model)
        if not layer_ids:
            decoder.register_forward_hook(self._keep_last_hidden_state)
        for place, index in enumerate(layer_ids):
            if index == len(layers):
                layers[-1].register_forward_hook(_of_output(self._kept, place), with_kwargs=True)
            else:
                layers[index].register_forward_pre_hook(_of_input(self._kept, place), with_kwargs=True)

    def last(self) -> Tensor:
        """[T, n * size]: those of the last forward pass, side by side."""
        kept = [state for state in self._kept if state is not None]
        if len(kept) < len(self._kept):
            raise RuntimeError("hidden states are asked for before a forward pass")
        return torch.cat([state[0] for state in kept], dim=-1)

    def batched(self) -> Tensor:
        """[B, T, n * size]: the same of a forward pass over a batch."""
        return torch.cat([state for state in self._kept if state is not None], dim=-1)

    def _keep_last_hidden_state(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._kept[0] = output[0] if isinstance(output, tuple) else output.last_hidden_state


def _of_input(kept: list[Tensor | None], place: int) -> Any:
    def keep(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept[place] = arguments[0] if arguments else named["hidden_states"]

    return keep


def _of_output(kept: list[Tensor | None], place: int) -> Any:
    def keep(module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        kept[place] = output[0] if isinstance(output, tuple) else output

    return keep


def _decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The model without its head, and its layers: the list of as many modules as its configuration says."""
    whole: Any = model
    count = whole.config.get_text_config(decoder=True).num_hidden_layers
    decoder: nn.Module = whole.get_decoder()
    found = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise UnsupportedConfiguration.lacking(
            "v1",
            "speculative-method",
            why=f"{type(model).__name__} has no list of its {count} layers that a draft head could look at",
        )
    return decoder, found[0]
