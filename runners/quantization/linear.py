"""Linear layers whose weights stay compressed in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from dodona.kernels.linear.quantized_weight import (
    QuantizedWeight,
    WeightKind,
    dequantize,
    quantize_weight,
    round_rows,
)
from dodona.oracle.models.quantization import ActivationScheme, WeightScheme
from dodona.runners.quantization.formats import (
    Converted,
    LinearShape,
    convert,
    stored_tensors,
    weight_kind,
)
from dodona.runners.quantization.mxfp4 import from_blocks, quantize_mxfp4

RoundInput = Callable[[torch.Tensor], torch.Tensor]


class StoredLinear(torch.nn.Module):
    """A linear layer as a checkpoint stores it: buffers to be filled, then `converted`. It computes nothing.

    Raises ConfigError where a layer of this shape can't be stored in its scheme's format.
    """

    bias: torch.Tensor | None

    def __init__(
        self,
        scheme: WeightScheme,
        shape: LinearShape,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.shape = shape
        self.dtype = dtype
        specs = stored_tensors(scheme, shape)
        for name, spec in specs.items():
            self.register_buffer(name, torch.empty(spec.shape, dtype=spec.dtype, device=device))
        if "weight" not in specs:
            # GPT-2's code draws random weights by this name before it reads stored ones.
            self.weight = torch.empty(0)
        self.register_buffer("bias", torch.empty(shape.rows, dtype=dtype, device=device) if bias else None)

    def converted(self) -> QuantizedLinear:
        """The layer in the form that computes. Raises ConfigError where stored indices are not as they must
        be."""
        tensors = {name: buffer for name, buffer in self.named_buffers() if name != "bias"}
        return QuantizedLinear(
            convert(self.scheme, self.shape, tensors),
            activations=self.scheme.activations,
            bias=self.bias,
            input_scale=tensors.get(self.scheme.input_scale_name),
            input_zero_point=tensors.get("input_zero_point"),
            dtype=self.dtype,
        )


class QuantizedLinear(torch.nn.Module):
    """`x @ dequantize(weight).T + bias`, with `x` quantized first where the scheme says so.

    Its buffers: `data`, `scales`, `zeros`, `order`, `bias`, `input_scale`, `input_zero_point`, as far as
    there are such.
    """

    round_input: RoundInput | None
    """[..., in_features] → the same, quantized and widened again; None: inputs are taken as they are. A rank
    that has a share of the inputs replaces it, since scales may be those of the whole."""
    zeros: torch.Tensor | None
    data: torch.Tensor
    scales: torch.Tensor
    order: torch.Tensor | None
    bias: torch.Tensor | None
    input_scale: torch.Tensor | None
    input_zero_point: torch.Tensor | None

    def __init__(
        self,
        converted: Converted,
        *,
        activations: ActivationScheme | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        input_scale: torch.Tensor | None = None,
        input_zero_point: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        weight = converted.weight
        self.kind: WeightKind = weight.kind
        self.group_size = weight.group_size
        self.shared_rows = weight.shared_rows
        self.activations = activations
        self.in_features = weight.inner
        self.out_features = weight.rows
        self.dtype = dtype
        self.round_input = None if activations is None else self._rounding(activations)
        self.register_buffer("data", weight.data)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)
        self.register_buffer("order", converted.order)
        self.register_buffer("bias", bias)
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("input_zero_point", input_zero_point)

    @property
    def quantized_weight(self) -> QuantizedWeight:
        """The weight."""
        return QuantizedWeight(
            self.kind, self.data, self.scales, self.zeros, self.group_size, self.shared_rows
        )

    @property
    def weight(self) -> torch.Tensor:
        """[out_features, in_features] in the model's dtype, widened anew: for models whose code reads the
        weight of a layer in place of calling it. Activations are not quantized then."""
        values = dequantize(self.quantized_weight, self.dtype)
        return values if self.order is None else values[:, torch.argsort(self.order)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., out_features] for `x` [..., in_features], in the dtype of `x`."""
        rounded = x if self.round_input is None else self.round_input(x)
        if self.order is not None:
            rounded = rounded.index_select(-1, self.order)
        # Activations that were rounded are in fp32, where the product of two quantized numbers is exact.
        weight = dequantize(self.quantized_weight, rounded.dtype)
        product = functional.linear(rounded, weight).to(x.dtype)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"

    def _rounding(self, activations: ActivationScheme) -> RoundInput:
        def rounded(x: torch.Tensor) -> torch.Tensor:
            return round_rows(
                x,
                kind=activations.kind,
                group_size=activations.group_size,
                scale=self.input_scale,
                zero_point=self.input_zero_point,
                symmetric=activations.symmetric,
            )

        return rounded


def quantized_from(
    values: torch.Tensor, scheme: WeightScheme, *, bias: torch.Tensor | None = None
) -> QuantizedLinear:
    """A linear layer of the weight `values` [out, in], quantized as `scheme` says, each scale from the
    weights that share it.

    Blocks are taken as groups of one row; there is no order of groups, and stored scales of activations are
    made from a range of -8 to 8.
    """
    kind = weight_kind(scheme)
    weight = (
        from_blocks(*quantize_mxfp4(values))
        if kind == "fp4"
        else quantize_weight(values, kind=kind, group_size=scheme.group_size, symmetric=scheme.symmetric)
    )
    activations, device = scheme.activations, values.device
    static = activations is not None and not activations.dynamic
    largest = 448.0 if activations is not None and activations.kind == "fp8" else 127.5
    order = torch.arange(weight.inner, device=device) if scheme.act_order else None
    return QuantizedLinear(
        Converted(weight, order),
        activations=activations,
        bias=bias,
        dtype=values.dtype,
        input_scale=torch.tensor([8.0 / largest], device=device) if static else None,
        input_zero_point=(
            torch.zeros(1, dtype=torch.int8, device=device)
            if activations is not None and static and not activations.symmetric
            else None
        ),
    )
