"""How the linear layers of a dense decoder are cut into equal parts, one for each rank, and whether their
quantized weights can be cut so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm

from dodona.oracle.models.quantization import QuantizationConfig, WeightScheme

ROWS, INNER = 0, 1
"""Dimensions of a weight: elements of the layer's result, and of its input."""

_PACKED = 8
"""Elements of the input that formats with packed numbers keep together."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A layer's weight is cut along a dimension of `size` elements into equal `parts`."""

    dim: int
    """ROWS or INNER."""
    size: int
    parts: int


def dense_cuts(*, q_size: int, kv_size: int, width: int, ranks: int, kv_parts: int) -> dict[str, Cut]:
    """By module name within a decoder layer, how ranks share the layer: queries, keys and values by heads;
    gate and up by their results; what follows these by its inputs.

    Args:
        q_size: elements of all query heads; they divide by `ranks`.
        kv_size: elements of all key heads; they divide by `kv_parts`, fewer than ranks where neighbours have
            the same head.
        width: the feed-forward layer's; it divides by `ranks`.
    """
    heads, values = Cut(ROWS, q_size, ranks), Cut(ROWS, kv_size, kv_parts)
    outputs = Cut(ROWS, width, ranks)
    return {
        "self_attn.q_proj": heads,
        "self_attn.k_proj": values,
        "self_attn.v_proj": values,
        "self_attn.o_proj": Cut(INNER, q_size, ranks),
        "mlp.gate_proj": outputs,
        "mlp.up_proj": outputs,
        "mlp.down_proj": Cut(INNER, width, ranks),
    }


def share_fault(quantization: QuantizationConfig, num_layers: int, cuts: Mapping[str, Cut]) -> str | None:
    """Why a layer's parts would not hold whole groups, blocks or packed words; None where all do."""
    faults = {
        (rule.scheme, name): fault
        for rule in quantization.rules
        for name, cut in cuts.items()
        if (fault := _fault(rule.scheme, cut)) is not None
    }
    if not faults:
        return None  # whatever layers the rules name
    for layer in range(num_layers):
        for name in cuts:
            scheme = quantization.scheme_of(f"model.layers.{layer}.{name}")
            if scheme is not None and (scheme, name) in faults:
                return f"model.layers.{layer}.{name}: {faults[scheme, name]}"
    return None


def _fault(scheme: WeightScheme, cut: Cut) -> str | None:
    if cut.dim == INNER and scheme.act_order:
        return "its groups are in the order of activations"
    unit, share = (_rows_unit if cut.dim == ROWS else _inner_unit)(scheme), cut.size // cut.parts
    if share % unit == 0:
        return None
    elements = "results" if cut.dim == ROWS else "inputs"
    return f"each of {cut.parts} parts has {share} of {cut.size} {elements}, no multiple of {unit}"


def _rows_unit(scheme: WeightScheme) -> int:
    """Rows that are stored together."""
    if scheme.layout in ("gptq", "awq") or (scheme.layout == "pack-quantized" and not scheme.symmetric):
        return 32 // scheme.bits
    return scheme.block_rows or 1


def _inner_unit(scheme: WeightScheme) -> int:
    """Elements of the input that are stored together, or share a scale."""
    packed = _PACKED if scheme.layout in ("pack-quantized", "gptq", "awq") else 1
    return lcm(packed, scheme.group_size or 1)
