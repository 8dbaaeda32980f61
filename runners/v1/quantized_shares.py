"""A rank's share of a quantized linear layer, in place: some of its outputs, or some of its inputs."""

from __future__ import annotations

import math

import torch

from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import Group
from dodona.runners.quantization.linear import QuantizedLinear

PACKED = 8
"""Inner elements that 4-bit weights have in one word."""


def keep_outputs(linear: QuantizedLinear, first: int, count: int) -> None:
    """Keep the outputs [first, first + count)."""
    rows = slice(first, first + count)
    for part in ("data", "scales", "zeros", "bias"):
        tensor = getattr(linear, part)
        if tensor is not None:
            setattr(linear, part, tensor[rows].clone())
    linear.out_features = count
    linear.shared_rows = math.gcd(linear.shared_rows, first)


def keep_inputs(name: str, linear: QuantizedLinear, group: Group) -> None:
    """Keep this rank's equal share of the inputs; the caller adds up the ranks' results.

    Groups of inputs that share a scale become smaller where a share does not hold whole ones. Inputs that
    are rounded with scales of their own are brought together first: each scale is that of the whole.

    Raises UnsupportedConfiguration where the inputs can't be cut so.
    """
    count = linear.in_features // group.size
    first = group.rank * count
    if linear.order is not None:
        raise _refusal(name, "its groups are in the order of activations, so ranks can't share them")
    weight = linear.quantized_weight
    per_element = PACKED if weight.kind in ("int4", "fp4") else 1
    if count % per_element:
        raise _refusal(name, f"{count} inputs of a rank are not a multiple of {per_element}")
    weight = _with_groups_within(weight, count)
    groups = slice(None) if weight.group_size is None else _groups(weight.group_size, first, count)
    linear.data = weight.data[:, first // per_element : (first + count) // per_element].clone()
    linear.scales = weight.scales[:, groups].clone()
    linear.zeros = None if weight.zeros is None else weight.zeros[:, groups].clone()
    linear.group_size = weight.group_size
    linear.in_features = count
    rounding, activations = linear.round_input, linear.activations
    if rounding is not None and activations is not None and activations.dynamic:

        def of_whole(x: torch.Tensor) -> torch.Tensor:
            parts = group.all_gather(x.contiguous())
            return rounding(torch.cat(list(parts), dim=-1))[..., first : first + count]

        linear.round_input = of_whole


def _with_groups_within(weight: QuantizedWeight, count: int) -> QuantizedWeight:
    """The same weight, with groups of which `count` inputs are a whole number."""
    size = weight.group_size
    if size is None or count % size == 0:
        return weight
    smaller = math.gcd(size, count)
    last = -(-weight.inner // smaller)

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(size // smaller, dim=1)[:, :last].contiguous()

    zeros = None if weight.zeros is None else spread(weight.zeros)
    return QuantizedWeight(weight.kind, weight.data, spread(weight.scales), zeros, smaller)


def _groups(size: int, first: int, count: int) -> slice:
    return slice(first // size, (first + count) // size)


def _refusal(name: str, why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking("v1", "quantized-tensor-parallelism", why=f"{name}: {why}")
