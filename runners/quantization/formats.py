"""Storage formats: which tensors a quantized linear layer has in a checkpoint, and their conversion into the
form that is computed with.

Each format is a pair of functions in `_FORMATS`: the tensors' names, shapes and types, and the conversion.
Bits are packed from the lowest of an int32 up, unless said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dodona.kernels.linear.quantized_weight import QuantizedWeight, WeightKind, pack_nibbles, quantize_weight
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.quantization import WeightScheme


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer, and what is known of its file."""

    name: str
    """Module name, for errors."""
    rows: int
    """Elements of its result."""
    inner: int
    """Elements of its input."""
    scalar_shape: tuple[int, ...] = (1,)
    """How the checkpoint stores a single number: [1] or []."""
    first_group: int = 0
    """The number of its first group: another than 0 where it has some of a stored layer's inputs."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A stored tensor. Floats may be stored in another type, and are converted exactly."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Converted:
    """A layer's weight, ready to compute with."""

    weight: QuantizedWeight
    order: torch.Tensor | None = None
    """[inner] int64: the input's elements in the order of the weight's columns; None: as they are."""


Tensors = Mapping[str, torch.Tensor]
Specs = dict[str, TensorSpec]


def stored_tensors(scheme: WeightScheme, shape: LinearShape) -> Specs:
    """The tensors of a layer in a checkpoint, by their names within the layer (its bias left out).

    Raises ConfigError where a layer of this shape can't be stored so.
    """
    specs = _FORMATS[scheme.layout][0](scheme, shape)
    activations = scheme.activations
    if activations is not None and not activations.dynamic:
        specs[scheme.input_scale_name] = TensorSpec(shape.scalar_shape, torch.float32)
        if not activations.symmetric:
            specs["input_zero_point"] = TensorSpec(shape.scalar_shape, torch.int8)
    return specs


def convert(scheme: WeightScheme, shape: LinearShape, tensors: Tensors) -> Converted:
    """The layer's weight from its stored tensors.

    Raises ConfigError where an index of groups is not one.
    """
    return _FORMATS[scheme.layout][1](scheme, shape, tensors)


def weight_kind(scheme: WeightScheme) -> WeightKind:
    """The kind of the converted weight."""
    if scheme.kind == "float":
        return "fp4" if scheme.bits == 4 else "fp8"
    return "int4" if scheme.bits == 4 else "int8"


# --- Parts of several formats


def _groups(scheme: WeightScheme, shape: LinearShape) -> int:
    return 1 if scheme.group_size is None else -(-shape.inner // scheme.group_size)


def _check_divisible(scheme: WeightScheme, shape: LinearShape, number: int, what: str, by: int) -> None:
    if number % by:
        raise ConfigError(
            f"layer {shape.name!r}: {what} {number} is not a multiple of {by}, so the format "
            f"{scheme.layout!r} of config.json's quantization_config can't store it"
        )


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., n * 32 / bits] uint8 of int32 [..., n]: the unsigned values, the lowest bits first."""
    mask = (1 << bits) - 1
    parts = [(words >> shift) & mask for shift in range(0, 32, bits)]
    return torch.stack(parts, dim=-1).to(torch.uint8).flatten(-2)


def _integers(
    scheme: WeightScheme,
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
) -> QuantizedWeight:
    """From unsigned values [rows, inner] and unsigned zero points [rows, groups], both uint8."""
    if scheme.bits == 4:
        data = pack_nibbles(values)
        zeros = None if zeros is None else zeros.to(torch.int8)
        return QuantizedWeight("int4", data, scales, zeros, scheme.group_size)
    return QuantizedWeight(
        "int8", _signed(values), scales, None if zeros is None else _signed(zeros), scheme.group_size
    )


def _signed(values: torch.Tensor) -> torch.Tensor:
    return (values.to(torch.int16) - 128).to(torch.int8)


def _order(scheme: WeightScheme, shape: LinearShape, name: str, group_index: torch.Tensor) -> torch.Tensor:
    """[inner] int64: the elements sorted by group. Raises ConfigError unless all groups are of one size."""
    order = torch.argsort(group_index, stable=True)
    size = scheme.group_size or shape.inner
    expected = torch.arange(shape.inner, device=order.device) // size + shape.first_group
    if not torch.equal(group_index[order].long(), expected):
        raise ConfigError(
            f"tensor {shape.name}.{name}: expected each group's number {size} times, as config.json's "
            "group_size says; the file is damaged, or its config.json is another model's"
        )
    return order


# --- compressed-tensors: one element for each value


def _plain_tensors(scheme: WeightScheme, shape: LinearShape) -> Specs:
    dtype = torch.int8 if scheme.kind == "int" else torch.float8_e4m3fn
    scales = _plain_scale_shape(scheme, shape)
    specs = {
        "weight": TensorSpec((shape.rows, shape.inner), dtype),
        scheme.scale_name: TensorSpec(scales, torch.float32),
    }
    if not scheme.symmetric:
        specs["weight_zero_point"] = TensorSpec(scales, torch.int8)
    return specs


def _plain_scale_shape(scheme: WeightScheme, shape: LinearShape) -> tuple[int, ...]:
    if scheme.strategy == "tensor":
        return shape.scalar_shape
    if scheme.strategy == "block":
        assert scheme.block_rows is not None
        return (-(-shape.rows // scheme.block_rows), _groups(scheme, shape))
    return (shape.rows, _groups(scheme, shape))


def _convert_plain(scheme: WeightScheme, shape: LinearShape, tensors: Tensors) -> Converted:
    def per_row(stored: torch.Tensor) -> torch.Tensor:
        if scheme.strategy == "tensor":
            return stored.reshape(1, 1).repeat(shape.rows, 1)
        if scheme.strategy == "block":
            assert scheme.block_rows is not None
            return stored.repeat_interleave(scheme.block_rows, dim=0)[: shape.rows].contiguous()
        return stored

    zeros = tensors.get("weight_zero_point")
    return Converted(
        QuantizedWeight(
            weight_kind(scheme),
            tensors["weight"],
            per_row(tensors[scheme.scale_name]),
            None if zeros is None else per_row(zeros),
            scheme.group_size,
            scheme.block_rows or 1,
        )
    )


# --- compressed-tensors: packed integers


def _packed_tensors(scheme: WeightScheme, shape: LinearShape) -> Specs:
    per_word, groups = 32 // scheme.bits, _groups(scheme, shape)
    _check_divisible(scheme, shape, shape.inner, "its input size", 8)
    specs = {
        "weight_packed": TensorSpec((shape.rows, shape.inner // per_word), torch.int32),
        "weight_scale": TensorSpec(
            shape.scalar_shape if scheme.strategy == "tensor" else (shape.rows, groups), torch.float32
        ),
        "weight_shape": TensorSpec((2,), torch.int64),
    }
    if not scheme.symmetric:
        specs["weight_zero_point"] = TensorSpec((-(-shape.rows // per_word), groups), torch.int32)
    if scheme.act_order:
        specs["weight_g_idx"] = TensorSpec((shape.inner,), torch.int32)
    return specs


def _convert_packed(scheme: WeightScheme, shape: LinearShape, tensors: Tensors) -> Converted:
    values, scales = _unpack(tensors["weight_packed"], scheme.bits), tensors["weight_scale"]
    if scheme.strategy == "tensor":
        scales = scales.reshape(1, 1).repeat(shape.rows, 1)
    zeros = tensors.get("weight_zero_point")
    if zeros is not None:  # packed along the rows
        zeros = _unpack(zeros.T, scheme.bits)[:, : shape.rows].T.contiguous()
    order = None
    if scheme.act_order:
        order = _order(scheme, shape, "weight_g_idx", tensors["weight_g_idx"])
        values = values[:, order]
    return Converted(_integers(scheme, values, scales, zeros), order)


# --- GPTQ: packed along the inner dimension, transposed


def _gptq_tensors(scheme: WeightScheme, shape: LinearShape) -> Specs:
    per_word, groups = 32 // scheme.bits, _groups(scheme, shape)
    _check_divisible(scheme, shape, shape.inner, "its input size", 8)
    _check_divisible(scheme, shape, shape.rows, "its output size", per_word)
    return {
        "qweight": TensorSpec((shape.inner // per_word, shape.rows), torch.int32),
        "qzeros": TensorSpec((groups, shape.rows // per_word), torch.int32),
        "scales": TensorSpec((groups, shape.rows), torch.float32),
        "g_idx": TensorSpec((shape.inner,), torch.int32),
    }


def _convert_gptq(scheme: WeightScheme, shape: LinearShape, tensors: Tensors) -> Converted:
    values = _unpack(tensors["qweight"].T, scheme.bits)
    # The first format stores zero points less one.
    zeros = (_unpack(tensors["qzeros"], scheme.bits) + scheme.zero_offset) & ((1 << scheme.bits) - 1)
    found = _order(scheme, shape, "g_idx", tensors["g_idx"])
    if scheme.act_order:
        values = values[:, found]
    elif not torch.equal(found, torch.arange(shape.inner, device=found.device)):
        raise ConfigError(
            f"tensor {shape.name}.g_idx: groups are not contiguous, but config.json's quantization_config "
            "has desc_act false; set it to true"
        )
    weight = _integers(scheme, values, tensors["scales"].T.contiguous(), zeros.T.contiguous())
    return Converted(weight, found if scheme.act_order else None)


# --- AWQ: packed along the rows, in an order of its own

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place in a word of each of eight neighbours."""


def _awq_tensors(scheme: WeightScheme, shape: LinearShape) -> Specs:
    groups = _groups(scheme, shape)
    _check_divisible(scheme, shape, shape.inner, "its input size", 8)
    _check_divisible(scheme, shape, shape.rows, "its output size", 8)
    return {
        "qweight": TensorSpec((shape.inner, shape.rows // 8), torch.int32),
        "qzeros": TensorSpec((groups, shape.rows // 8), torch.int32),
        "scales": TensorSpec((groups, shape.rows), torch.float32),
    }


def _convert_awq(scheme: WeightScheme, shape: LinearShape, tensors: Tensors) -> Converted:
    def rows(words: torch.Tensor) -> torch.Tensor:
        eights = _unpack(words, 4).view(words.shape[0], -1, 8)[..., list(_AWQ_ORDER)]
        return eights.flatten(1).T.contiguous()

    scales = tensors["scales"].T.contiguous()
    return Converted(_integers(scheme, rows(tensors["qweight"]), scales, rows(tensors["qzeros"])))


# --- Not quantized yet


def _online_tensors(scheme: WeightScheme, shape: LinearShape) -> Specs:
    return {"weight": TensorSpec((shape.rows, shape.inner), torch.float32)}


def _convert_online(scheme: WeightScheme, shape: LinearShape, tensors: Tensors) -> Converted:
    weight = tensors["weight"]
    if scheme.kind == "float":
        return Converted(quantize_weight(weight, kind="fp8"))
    return Converted(quantize_weight(weight, kind="int8"))


_FORMATS: Mapping[
    str,
    tuple[
        Callable[[WeightScheme, LinearShape], Specs],
        Callable[[WeightScheme, LinearShape, Tensors], Converted],
    ],
] = {
    "plain": (_plain_tensors, _convert_plain),
    "fp8": (_plain_tensors, _convert_plain),
    "pack-quantized": (_packed_tensors, _convert_packed),
    "gptq": (_gptq_tensors, _convert_gptq),
    "awq": (_awq_tensors, _convert_awq),
    "online": (_online_tensors, _convert_online),
}
