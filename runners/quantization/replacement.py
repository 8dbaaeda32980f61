"""Quantized layers in place of a model's linear ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from dodona.oracle.models.quantization import QuantizationConfig, WeightScheme
from dodona.runners.quantization.formats import LinearShape
from dodona.runners.quantization.linear import QuantizedLinear, StoredLinear, quantized_from


def expect_stored(
    model: torch.nn.Module, config: QuantizationConfig, stored: Mapping[str, tuple[int, ...]]
) -> None:
    """Put a `StoredLinear` in place of each linear layer that `config` quantizes.

    stored: the shapes of the checkpoint's tensors by name. Raises ConfigError where a layer's shape
    doesn't suit its format.
    """
    scalars = {name.rpartition(".")[2]: shape for name, shape in stored.items() if shape in ((), (1,))}

    def make(name: str, linear: torch.nn.Linear, scheme: WeightScheme) -> torch.nn.Module:
        scalar = scalars.get(scheme.scale_name, scalars.get(scheme.input_scale_name, (1,)))
        shape = LinearShape(name, linear.out_features, linear.in_features, scalar)
        weight = linear.weight
        return StoredLinear(
            scheme, shape, bias=linear.bias is not None, dtype=weight.dtype, device=weight.device
        )

    _replace(model, config, make)


def convert_stored(model: torch.nn.Module) -> None:
    """Put the layers that compute in place of those that were loaded."""
    for parent, attribute, module in list(_children(model)):
        if isinstance(module, StoredLinear):
            setattr(parent, attribute, module.converted())


def quantize_linears(model: torch.nn.Module, config: QuantizationConfig) -> None:
    """Quantize the linear layers that `config` names from their values."""
    _replace(model, config, lambda name, linear, scheme: quantized_from(linear, scheme))


def quantized_layers(model: torch.nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def _replace(
    model: torch.nn.Module,
    config: QuantizationConfig,
    make: Callable[[str, torch.nn.Linear, WeightScheme], torch.nn.Module],
) -> None:
    tied = _tied(model)
    names = {id(module): name for name, module in model.named_modules()}
    for parent, attribute, module in list(_children(model)):
        if isinstance(module, torch.nn.Linear) and module is not tied:
            name = names[id(module)]
            scheme = config.scheme_of(name)
            if scheme is not None:
                setattr(parent, attribute, make(name, module, scheme))


def _tied(model: torch.nn.Module) -> torch.nn.Module | None:
    """The output layer whose weight is the input embedding's."""
    config = getattr(model, "config", None)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is None or config is None:
        return None
    text = config.get_text_config(decoder=True)
    return output if getattr(text, "tie_word_embeddings", False) else None


def _children(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Module]]:
    for parent in model.modules():
        for attribute, module in parent.named_children():
            yield parent, attribute, module
