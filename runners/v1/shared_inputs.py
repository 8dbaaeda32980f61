"""Linear layers that get the same input, whose products of one token are one launch.

Which layers these are is seen in a forward pass: attention calls three with its hidden states, a gated MLP
two. The first of them computes the products of all, and the others take theirs, as long as they are called
with the very tensor that the first was called with; else each computes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeGuard

import torch
from torch import nn

from dodona.kernels.linear.single_token_linears import MOST_LAYERS, single_token_linears

Groups = Sequence[Sequence[nn.Linear]]


def is_plain_linear(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module computes a product by a weight that lies in memory as its shape and dtype say. That of
    a quantization library (torchao) only looks so: a tensor of a class of its own, without data."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter


def layers_by_input(model: nn.Module, run: Callable[[], object]) -> Groups:
    """The linear layers of `model` that `run`, a forward pass of it, calls once each, and with the same input
    as another: two or more together, in the order of their calls."""
    calls: dict[int, tuple[torch.Tensor, list[nn.Linear]]] = {}  # by the input, which lives as long as this
    count: dict[nn.Linear, int] = {}

    def note(module: Any, args: tuple[Any, ...]) -> None:
        count[module] = count.get(module, 0) + 1
        if args and isinstance(args[0], torch.Tensor):
            calls.setdefault(id(args[0]), (args[0], []))[1].append(module)

    with ExitStack() as hooks:
        for module in model.modules():
            if is_plain_linear(module):
                hooks.callback(module.register_forward_pre_hook(note).remove)
        run()
    return [
        layers[i : i + MOST_LAYERS]
        for _, layers in calls.values()
        for i in range(0, len(layers), MOST_LAYERS)
        if len(layers[i : i + MOST_LAYERS]) > 1 and all(count[layer] == 1 for layer in layers)
    ]


class SharedProducts:
    """Products of a group, of a token that the first of them was called with."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = tuple(layers)
        self._input: torch.Tensor | None = None
        self._left: dict[int, torch.Tensor] = {}
        """Products of `_input` that nobody took yet, by number of the layer."""

    def forwards(self) -> Iterator[tuple[nn.Linear, Callable[..., torch.Tensor]]]:
        """The layers, and what computes their forward passes."""
        for number, layer in enumerate(self._layers):
            yield layer, self._forward(number, layer)

    def _forward(self, number: int, layer: nn.Linear) -> Callable[..., torch.Tensor]:
        inner = layer.in_features

        def forward(hidden_states: torch.Tensor) -> torch.Tensor:
            if hidden_states is self._input and number in self._left:
                product = self._left.pop(number)
                if not self._left:
                    self._input = None
                return product
            if number or hidden_states.numel() != inner:
                return nn.functional.linear(hidden_states, layer.weight, layer.bias)
            products = single_token_linears(
                x=hidden_states.reshape(1, inner).contiguous(),
                weights=[each.weight for each in self._layers],
                biases=[each.bias for each in self._layers],
            )
            shape = hidden_states.shape[:-1]
            first, *others = (product.view(*shape, -1) for product in products)
            self._input, self._left = hidden_states, dict(enumerate(others, 1))
            return first

        return forward
