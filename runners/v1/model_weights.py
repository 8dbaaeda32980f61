"""The weights of a transformers model in place: by the names of its checkpoint, or replaced as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dodona.oracle.errors import ConfigError
from dodona.runners.quantization.replacement import quantized_layers
from dodona.runners.weights.life import WeightViews


class _ViewOnly(torch.Tensor):
    """A tensor whose conversions stay views: transformers ends some of them with a copy."""

    def contiguous(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self


def views(model: torch.nn.Module) -> WeightViews:
    """A model's parameters and persistent buffers, by their own names and by those of its checkpoint.

    The two differ where transformers fuses tensors as it loads them, such as the experts of a layer; then
    each of the checkpoint's tensors is a part of a parameter. Quantized layers are left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    layers = quantized_layers(model)
    quantized = {f"{name}.{part}" for name, layer in layers.items() for part in layer.state_dict()}
    # A quantized layer's tensors are not those of its checkpoint: they change by `replace` alone.
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in quantized}
    # A name of a tensor that another name has too: the first is the one that checkpoints have.
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in own.items():
        if first.setdefault(_place(tensor), name) != name:
            tied[name] = first[_place(tensor)]
    own = {name: tensor for name, tensor in own.items() if name not in tied}
    revert: Callable[..., dict[str, torch.Tensor]] = revert_weight_conversion
    with torch.no_grad():
        reverted = revert(model, {name: tensor.as_subclass(_ViewOnly) for name, tensor in own.items()})
    places = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    parts = {
        name: tensor.as_subclass(torch.Tensor)
        for name, tensor in reverted.items()
        # What a conversion computes anew, writes would not reach.
        if tensor.untyped_storage().data_ptr() in places
    }
    return WeightViews({**own, **parts}, tied, frozenset(layers))


def releasable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a sleeping model gives back, by name: its parameters, and the tensors of quantized layers. Other
    buffers are small, and not all of them are in a checkpoint."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    for name, layer in quantized_layers(model).items():
        found |= {f"{name}.{part}": buffer for part, buffer in layer.named_buffers()}
    return found


def replace(model: torch.nn.Module, fresh: torch.nn.Module) -> None:
    """Overwrite `model`'s weights in place with those of `fresh`, a model of the same configuration.

    Raises ConfigError, before the first write, where `fresh` has two tensors that are one in `model`, or one
    that is two in it.
    """
    source = fresh.state_dict()
    check_ties(model.state_dict(), source)
    model.load_state_dict(source, strict=True, assign=False)


def check_ties(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    """Raise ConfigError where two tensors of `source` differ that are one in `target`, and where one of
    `source` stands for two of `target`: a checkpoint without the output layer that the running model has."""
    _check_no_new_ties(target, source)
    by_place: dict[int, str] = {}
    for name, tensor in target.items():
        first = by_place.setdefault(_place(tensor), name)
        if first != name and not torch.equal(source[first], source[name]):
            raise ConfigError(
                f"the weights have a {name!r} of their own, and the running model ties it to {first!r}; "
                "make a new LLM"
            )


def _check_no_new_ties(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    by_place: dict[int, str] = {}
    for name, tensor in source.items():
        first = by_place.setdefault(_place(tensor), name)
        both = first in target and name in target
        if first != name and both and _place(target[first]) != _place(target[name]):
            raise ConfigError(
                f"the weights have no {name!r} of their own, but tie it to {first!r}, and the running model "
                "has two tensors; make a new LLM"
            )


def _place(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.numel() else id(tensor)
