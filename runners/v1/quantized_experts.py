"""Quantized experts that kernels compute for all tokens at once; found as `fusions` finds its parts.

The module itself computes expert by expert those that some token has, which it reads on the host: no graph
can hold that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dodona.kernels.linear.quantized_weight import QuantizedWeight, quantize_rows
from dodona.kernels.linear.round_activations import RoundedActivations, Rounding, round_activations
from dodona.kernels.moe.grouped import MOST_EXPERTS, plan_blocks, sum_of_pairs
from dodona.kernels.moe.quantized import (
    ExpertsWeight,
    choose_product_tiles,
    experts_product,
    supports_experts_product,
)
from dodona.oracle.models.quantization import ActivationScheme
from dodona.runners.quantization.experts import ExpertPart, QuantizedExperts
from dodona.runners.quantization.linear import QuantizedLinear
from dodona.runners.quantization.replacement import unrounded_inputs
from dodona.runners.v1.agreement import ROUNDING, close, random

_TRIED_TOKENS = (1, 20)
"""Of which each has two experts."""
_STACKED = ("data", "scales", "zeros", "order", "bias")


def fused_quantized_experts(module: Any, known: dict[tuple[object, ...], bool]) -> Callable[..., Any] | None:
    """For quantized experts of one scheme: the same by `experts_product`.

    Their tensors become parts of one for all experts. `known` has of each shape and scheme that was tried
    whether the kernels serve it.
    """
    if type(module) is not QuantizedExperts:
        return None
    layers = module.layers()
    first = layers["down"][0]
    everyone = [layer for part in layers.values() for layer in part]
    if any(_is_changed(layer) for layer in everyone) or not isinstance(first, QuantizedLinear):
        return None
    if not all(_is_like(layer, first) for layer in everyone) or first.dtype not in ROUNDING:
        return None
    activations, num_experts, dtype = first.activations, len(layers["down"]), first.dtype
    if num_experts > MOST_EXPERTS:
        return None
    try:
        stacks = {part: _stacked(each) for part, each in layers.items()}
        stored, own = None, None
        if activations is not None and activations.dynamic:
            own = _by_own_scales(activations)
        elif activations is not None:
            stored = _by_stored_scales(activations, layers)
    except ValueError:
        return None

    def compute(
        hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, *, rounds: bool
    ) -> torch.Tensor:
        chosen = top_k_index.contiguous()
        tiles = choose_product_tiles(chosen.numel(), num_experts, dtype)
        plan = plan_blocks(chosen, num_experts, tiles.block)
        # An expert's gate and up projections get the same.
        tokens = _rounded(hidden_states, own if rounds else None)

        def linear(part: ExpertPart, x: torch.Tensor) -> torch.Tensor:
            given = tokens
            if rounds and stored is not None:
                given = stored(part, x, chosen)
            elif x is not hidden_states:
                given = _rounded(x, own if rounds else None)
            return experts_product(x=given, experts=stacks[part], plan=plan, tiles=tiles)

        parts = module.compute(hidden_states, linear)
        return sum_of_pairs(parts, chosen, num_experts, top_k_weights.contiguous())

    def forward(
        hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        rounds = activations is not None
        if rounds and first.round_input is None:  # inside `unrounded_inputs`
            return QuantizedExperts.forward(module, hidden_states, top_k_index, top_k_weights)
        return compute(hidden_states, top_k_index, top_k_weights, rounds=rounds)

    case = (*(_form(part, stack) for part, stack in stacks.items()), num_experts, dtype, activations)
    if case not in known:
        like = torch.empty(0, dtype=dtype, device=first.data.device)
        inputs = [_arguments(tokens, stacks, like) for tokens in _TRIED_TOKENS]
        try:
            with unrounded_inputs(module):
                known[case] = all(close(module(*each), compute(*each, rounds=False)) for each in inputs)
            if activations is not None:
                known[case] &= all(_is_near(module(*each), forward(*each)) for each in inputs)
        except Exception:  # the GPU can't run the kernels
            known[case] = False
    return forward if known[case] else None


_Round = Callable[[torch.Tensor], RoundedActivations]


def _rounded(x: torch.Tensor, by: _Round | None) -> torch.Tensor | RoundedActivations:
    return x.contiguous() if by is None else by(x)


def _by_own_scales(activations: ActivationScheme) -> _Round:
    """Rounds rows by scales of their own."""
    kind, group_size = activations.kind, activations.group_size
    if activations.symmetric:
        rounding = Rounding(kind, group_size)
        return lambda x: round_activations(x=x, rounding=rounding)

    def rounded(x: torch.Tensor) -> RoundedActivations:
        numbers, scales = quantize_rows(x, kind=kind, group_size=group_size, symmetric=False)
        return RoundedActivations(numbers.to(x.dtype), scales.contiguous(), group_size)

    return rounded


def _by_stored_scales(
    activations: ActivationScheme, layers: Mapping[ExpertPart, Sequence[Any]]
) -> Callable[[ExpertPart, torch.Tensor, torch.Tensor], RoundedActivations]:
    """Rounds the inputs of a part, rows of tokens or of pairs, to rows of pairs, by their experts' scales.
    Raises ValueError where these differ in their form."""
    stored = {
        part: (_joined(each, "input_scale"), _joined(each, "input_zero_point"))
        for part, each in layers.items()
    }

    def rounded(part: ExpertPart, x: torch.Tensor, chosen: torch.Tensor) -> RoundedActivations:
        scale, zero = stored[part]
        assert scale is not None
        expert = chosen.flatten().clamp(0, len(scale) - 1)
        numbers, scales = quantize_rows(
            x.repeat_interleave(len(expert) // len(x), 0),
            kind=activations.kind,
            scale=scale.view(-1, 1)[expert],
            zero_point=None if zero is None else zero.view(-1, 1)[expert],
        )
        return RoundedActivations(numbers.to(x.dtype), scales)

    return rounded


def _form(part: ExpertPart, stack: ExpertsWeight) -> tuple[object, ...]:
    weight = stack.weight
    return (
        *(part, weight.kind, weight.rows, weight.inner, weight.group_size, weight.scales.dtype),
        *(weight.zeros is None, stack.order is None, stack.bias is None),
    )


def _arguments(
    tokens: int, stacks: Mapping[ExpertPart, ExpertsWeight], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random inputs of so many tokens."""
    num_experts, hidden = stacks["down"].num_experts, stacks["down"].rows
    scores = random(tokens, num_experts, like=like).float().softmax(-1)
    weights, chosen = scores.topk(min(2, num_experts))
    return random(tokens, hidden, like=like), chosen, weights.to(like.dtype)


def _is_near(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """As `close`, but rounding of inputs makes whole steps of last bits."""
    return close(expected.bfloat16(), found.bfloat16())


def _is_changed(layer: nn.Module) -> bool:
    """Whether someone else changed what a layer computes, such as adapters."""
    return bool("forward" in layer.__dict__ or layer._forward_hooks or layer._forward_pre_hooks)


def _is_like(layer: nn.Module, other: QuantizedLinear) -> bool:
    """Whether a layer is quantized in the same scheme."""
    return isinstance(layer, QuantizedLinear) and (
        (layer.kind, layer.group_size, layer.activations, layer.dtype)
        == (other.kind, other.group_size, other.activations, other.dtype)
    )


def _stacked(layers: Sequence[Any]) -> ExpertsWeight:
    """One part of all experts, whose tensors become parts of those that are returned.

    Raises ValueError where the experts differ in their form, or no kernel serves it.
    """
    first: QuantizedLinear = layers[0]
    if not supports_experts_product(first.quantized_weight):
        raise ValueError("no kernel serves its groups")
    tensors = {name: _joined(layers, name) for name in _STACKED}
    data, scales, zeros = (tensors[name] for name in ("data", "scales", "zeros"))
    assert data is not None
    assert scales is not None
    weight = QuantizedWeight(
        first.kind,
        data.flatten(0, 1),
        scales.flatten(0, 1),
        None if zeros is None else zeros.flatten(0, 1),
        first.group_size,
        first.shared_rows,
    )
    return ExpertsWeight(weight, len(layers), order=tensors["order"], bias=tensors["bias"])


def _joined(layers: Sequence[Any], name: str) -> torch.Tensor | None:
    """[layers, ...]: a tensor of all layers, of which theirs are parts from now on."""
    found = [getattr(layer, name) for layer in layers]
    if all(tensor is None for tensor in found):
        return None
    if any(tensor is None or tensor.shape != found[0].shape for tensor in found):
        raise ValueError(f"the experts' {name} differ in their form")
    first: torch.Tensor = found[0]
    step = first.numel() * first.element_size()
    if all(
        tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.data_ptr() == first.data_ptr() + number * step
        and tensor.is_contiguous()
        for number, tensor in enumerate(found)
    ):
        return first.as_strided((len(found), *first.shape), (first.numel(), *first.stride()))
    joined = torch.stack([_as_bytes(tensor) for tensor in found]).view(first.dtype)
    for layer, part in zip(layers, joined, strict=True):
        setattr(layer, name, part)
    return joined


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Floats of one byte as whole numbers: torch does not stack all of them."""
    is_small = tensor.dtype.itemsize == 1 and tensor.is_floating_point()
    return tensor.view(torch.uint8) if is_small else tensor
