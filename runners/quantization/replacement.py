"""Quantized layers in place of a model's linear ones and of its experts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from dodona.oracle.models.quantization import QuantizationConfig, WeightScheme
from dodona.runners.quantization.experts import (
    ExpertPart,
    MakeExpert,
    QuantizedExperts,
    is_expert_stack,
    separate_parts,
    stacked_parts,
)
from dodona.runners.quantization.formats import LinearShape, stored_tensors
from dodona.runners.quantization.linear import QuantizedLinear, StoredLinear, quantized_from
from dodona.runners.quantization.mxfp4 import check_groups
from dodona.runners.quantization.stored_experts import StoredMxfp4Experts

_EQUAL_CLASSES = ("FalconLinear",)
"""Classes whose own code computes what `torch.nn.Linear` does."""


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a checkpoint calls the weights of a layer's experts: PREFIX.NUMBER.NAME."""

    prefix: str
    names: Mapping[ExpertPart, str]


def expect_stored(
    model: torch.nn.Module,
    config: QuantizationConfig,
    stored: Mapping[str, tuple[int, ...]],
    experts: Mapping[str, ExpertNames],
    *,
    prefix: str = "",
    dense: Collection[str] = (),
) -> None:
    """Put modules that have the checkpoint's tensors in place of the linear layers and the experts that
    `config` quantizes.

    stored: the shapes of the checkpoint's tensors by name. experts: what the checkpoint calls the experts'
    weights, by the name of the module that has them. prefix: what comes before the names of `model`'s modules
    in the checkpoint and in `config`. dense: layers by name, with the prefix, that the checkpoint does not
    quantize whatever `config` says. Raises ConfigError where a layer's shape doesn't suit its format.
    """
    scalars = {name.rpartition(".")[2]: shape for name, shape in stored.items() if shape in ((), (1,))}

    def make(
        name: str, weight: torch.Tensor, bias: torch.Tensor | None, scheme: WeightScheme
    ) -> torch.nn.Module:
        scalar = scalars.get(scheme.scale_name, scalars.get(scheme.input_scale_name, (1,)))
        shape = LinearShape(name, weight.shape[0], weight.shape[1], scalar)
        return StoredLinear(scheme, shape, bias=bias is not None, dtype=weight.dtype, device=weight.device)

    def make_experts(path: str, stack: torch.nn.Module) -> torch.nn.Module | None:
        whole = config.scheme_of(path, type(stack).__name__)
        if whole is not None and whole.layout == "mxfp4":
            weight = stacked_parts(stack)["down"].weight
            return StoredMxfp4Experts(stack, name=path, dtype=weight.dtype)
        if path not in experts:
            return None
        parts = separate_parts(stack)
        schemes = expert_schemes(config, experts[path], parts["down"].weight.shape[0])
        if not schemes:
            return None
        make_part = _in_experts(path, make, lambda index, part: schemes.get((index, part)))
        return QuantizedExperts(stack, parts, make_part)

    _replace(model, config, make, make_experts, prefix=prefix, dense=dense)


def convert_stored(model: torch.nn.Module) -> None:
    """Put the layers that compute in place of those that were loaded."""
    for parent, attribute, module in list(_children(model)):
        if isinstance(module, StoredLinear | StoredMxfp4Experts):
            setattr(parent, attribute, module.converted())


def quantize_layers(model: torch.nn.Module, config: QuantizationConfig) -> None:
    """Quantize the linear layers and experts that `config` names from their values. Raises ConfigError where
    a layer of that shape could not be stored so."""

    def make(
        name: str, weight: torch.Tensor, bias: torch.Tensor | None, scheme: WeightScheme
    ) -> torch.nn.Module:
        rows, inner = weight.shape
        if scheme.layout == "mxfp4":
            check_groups(name, inner)
        else:
            stored_tensors(scheme, LinearShape(name, rows, inner))
        return quantized_from(weight.data, scheme, bias=None if bias is None else bias.data.clone())

    def make_experts(path: str, stack: torch.nn.Module) -> torch.nn.Module | None:
        scheme = config.scheme_of(path, type(stack).__name__) or config.scheme_of(f"{path}.0.up_proj")
        if scheme is None:
            return None
        return QuantizedExperts(
            stack, stacked_parts(stack), _in_experts(path, make, lambda index, part: scheme)
        )

    _replace(model, config, make, make_experts)


def quantized_layers(model: torch.nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers by module name, those of experts among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def rounds_inputs(model: torch.nn.Module) -> bool:
    """Whether some quantized layer rounds its inputs now."""
    return any(layer.round_input is not None for layer in quantized_layers(model).values())


@contextmanager
def unrounded_inputs(model: torch.nn.Module) -> Iterator[None]:
    """Inside, quantized layers take their inputs as they are.

    For comparisons of two ways to compute a model: where inputs are rounded, the last bits of another order
    of summation become whole steps, and a router may choose other experts. Each token is rounded by itself,
    so that rounding makes no difference between two ways that are equal without it.
    """
    rounding = {layer: layer.round_input for layer in quantized_layers(model).values()}
    for layer in rounding:
        layer.round_input = None
    try:
        yield
    finally:
        for layer, kept in rounding.items():
            layer.round_input = kept


def has_experts(model: torch.nn.Module) -> bool:
    """Whether the model has experts of which a router chooses some for each token."""
    return any(_is_experts(module) for module in model.modules())


@contextmanager
def without_experts(model: torch.nn.Module) -> Iterator[None]:
    """Inside, experts give zeros, quantized or not.

    For comparisons as by `unrounded_inputs`: of a near tie between two experts, either may be chosen.
    """

    def zeros(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    with ExitStack() as hooks:
        for module in model.modules():
            if _is_experts(module):
                hooks.callback(module.register_forward_hook(zeros).remove)
        yield


def _is_experts(module: torch.nn.Module) -> bool:
    return isinstance(module, QuantizedExperts) or is_expert_stack(module)


def is_transposed_linear(module: torch.nn.Module) -> bool:
    """Whether a layer is transformers' `Conv1D`: a linear layer whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_plain_linear(module: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    """Whether a layer computes what `torch.nn.Linear` does: a model's own class may compute something else
    with the weight, such as a product in groups, and stays as it is."""
    if not isinstance(module, torch.nn.Linear):
        return False
    return type(module).forward is torch.nn.Linear.forward or type(module).__name__ in _EQUAL_CLASSES


def expert_schemes(
    config: QuantizationConfig, names: ExpertNames, count: int
) -> dict[tuple[int, ExpertPart], WeightScheme]:
    """The schemes of a layer's `count` experts, by expert and part, without the parts that are not
    quantized."""
    found = {
        (index, part): config.scheme_of(f"{names.prefix}.{index}.{name}")
        for index in range(count)
        for part, name in names.names.items()
    }
    return {place: scheme for place, scheme in found.items() if scheme is not None}


_Make = Callable[[str, torch.Tensor, torch.Tensor | None, WeightScheme], torch.nn.Module]
"""(module name, weight [out, in], bias, scheme) → the layer."""


def _in_experts(
    path: str, make: _Make, scheme_of: Callable[[int, ExpertPart], WeightScheme | None]
) -> MakeExpert:
    def make_part(
        index: int, part: ExpertPart, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.nn.Module:
        scheme = scheme_of(index, part)
        if scheme is None:
            return _dense(weight, bias)
        return make(f"{path}.{index}.{part}", weight, bias, scheme)

    return make_part


def _dense(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    outputs, inputs = weight.shape
    linear = torch.nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def _replace(
    model: torch.nn.Module,
    config: QuantizationConfig,
    make: _Make,
    make_experts: Callable[[str, torch.nn.Module], torch.nn.Module | None],
    *,
    prefix: str = "",
    dense: Collection[str] = (),
) -> None:
    output, tied = _output(model), _ties_output(model)
    names = {id(module): name for name, module in model.named_modules()}
    for parent, attribute, module in list(_children(model)):
        name = names[id(module)]
        if is_plain_linear(module) or is_transposed_linear(module):
            scheme = _linear_scheme(config, prefix + name, module)
            # Whatever a model calls its output layer, quantization at load leaves it as it is.
            if module is output and (tied or (scheme is not None and scheme.layout == "online")):
                continue
            if scheme is not None and prefix + name not in dense:
                linear: Any = module
                weight = linear.weight.T.contiguous() if is_transposed_linear(module) else linear.weight
                setattr(parent, attribute, make(name, weight, linear.bias, scheme))
        elif is_expert_stack(module):
            replaced = make_experts(name, module)
            if replaced is not None:
                setattr(parent, attribute, replaced)


def _linear_scheme(config: QuantizationConfig, name: str, module: torch.nn.Module) -> WeightScheme | None:
    """The scheme of a linear layer. By "Linear", GPTQ means layers with a transposed weight too, as
    quantization at load does, and the other methods do not."""
    transposes = is_transposed_linear(module)
    scheme = config.scheme_of(name)
    if transposes and scheme is not None and scheme.layout not in ("online", "gptq"):
        return config.scheme_of(name, "Conv1D")
    return scheme


def _output(model: torch.nn.Module) -> torch.nn.Module | None:
    found: torch.nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return found


def _ties_output(model: torch.nn.Module) -> bool:
    """Whether the output layer's weight is the input embedding's."""
    config: Any = getattr(model, "config", None)
    return config is not None and bool(
        getattr(config.get_text_config(decoder=True), "tie_word_embeddings", False)
    )


def _children(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Module]]:
    for parent in model.modules():
        for attribute, module in parent.named_children():
            yield parent, attribute, module
