"""The linear layers of V2's models: a dense weight, or a quantized one with what is done to its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch.nn import functional

from dodona.kernels.linear.quantized_persistent_linear import (
    quantized_persistent_linear,
    supports_quantized_persistent,
)
from dodona.kernels.linear.quantized_single_token_linear import (
    quantized_single_token_linear,
    supports_quantized_single_token,
)
from dodona.kernels.linear.quantized_small_batch_linear import (
    is_faster_after_norm,
    quantized_small_batch_linear,
    supports_quantized_small_batch,
)
from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.kernels.linear.rms_norm import rms_norm
from dodona.kernels.linear.round_activations import RoundedActivations, Rounding, round_activations
from dodona.kernels.linear.single_token_linear import single_token_linear
from dodona.kernels.linear.small_batch_linear import (
    max_small_batch_tokens,
    small_batch_linear,
    supports_small_batch_linear,
)
from dodona.oracle.models.quantization import WeightScheme
from dodona.runners.quantization.formats import LinearShape, weight_kind
from dodona.runners.quantization.products import quantized_product
from dodona.runners.v2.models.shares import TensorShare


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedProjection:
    """A quantized weight [out, in], and how its input is rounded."""

    weight: QuantizedWeight
    rounding: Rounding | None

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that it consists of."""
        found = (self.weight.data, self.weight.scales, self.weight.zeros)
        return [tensor for tensor in found if tensor is not None]


Projection = torch.Tensor | QuantizedProjection


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedPart:
    """Rows of a projection that are a linear layer of the checkpoint, or this rank's share of one."""

    scheme: WeightScheme
    shape: LinearShape
    """Of the whole layer."""
    target: QuantizedWeight
    """Shares the projection's memory."""
    share: TensorShare | None = None
    """What `target` has of the layer's weight; None: all."""


Parts = Mapping[str, QuantizedPart]
"""Module name → part."""


def empty_projection(
    scheme: WeightScheme | None,
    rows: tuple[int, ...],
    inner: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Projection:
    """Uninitialised weights of layers with `rows` rows each, one below the other.

    Scales of integer groups take two bytes unless the model is computed in fp32, all others four.
    """
    if scheme is None:
        return torch.empty((sum(rows), inner), dtype=dtype, device=device)
    kind, total = weight_kind(scheme), sum(rows)
    groups = 1 if scheme.group_size is None else -(-inner // scheme.group_size)
    small = torch.float16 if scheme.layout in ("gptq", "awq") else dtype
    data_types = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.int32}
    scale_type = small if scheme.group_size and kind != "fp8" and dtype != torch.float32 else torch.float32
    weight = QuantizedWeight(
        kind,
        torch.empty((total, inner // 8 if kind == "int4" else inner), dtype=data_types[kind], device=device),
        torch.empty((total, groups), dtype=scale_type, device=device),
        None if scheme.symmetric else torch.empty((total, groups), dtype=torch.int8, device=device),
        scheme.group_size,
        gcd(scheme.block_rows, *rows) if scheme.block_rows else 1,
    )
    activations = scheme.activations
    rounding = None if activations is None else Rounding(activations.kind, activations.group_size)
    return QuantizedProjection(weight, rounding)


def max_small_batch(
    projections: Sequence[Projection], hidden_size: int, *, device: torch.device, dtype: torch.dtype
) -> int:
    """The most tokens for which `project_small_batch` serves all of these, and is the fastest; 0 where it
    doesn't serve one."""
    dense = [p for p in projections if isinstance(p, torch.Tensor)]
    quantized = [p.weight for p in projections if isinstance(p, QuantizedProjection)]
    sizes = [weight.shape[1] for weight in dense]
    if supports_small_batch_linear(device=device, dtype=dtype, sizes=sizes) and (
        supports_quantized_small_batch(quantized, device=device, dtype=dtype)
    ):
        return max_small_batch_tokens(hidden_size)
    return 1 if all(map(supports_quantized_single_token, quantized)) else 0


def project(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """`x @ weight.T`, [rows, out], of `x` [rows, in]."""
    if isinstance(projection, torch.Tensor):
        return functional.linear(x, projection)
    return quantized_product(x=x, weight=projection.weight, rounding=projection.rounding, persistent=False)


def project_small_batch(
    *,
    x: torch.Tensor,
    weight: Projection,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
) -> torch.Tensor:
    """`small_batch_linear` with a projection as `weight`, for as many rows as `max_small_batch` says."""
    if isinstance(weight, torch.Tensor):
        linear = single_token_linear if x.shape[0] == 1 else small_batch_linear
        return linear(
            x=x, weight=weight, norm_weight=norm_weight, eps=eps, residual=residual, silu_mul=silu_mul
        )
    if x.shape[0] == 1 and supports_quantized_persistent(
        weight.weight, weight.rounding, device=x.device, dtype=x.dtype
    ):
        return quantized_persistent_linear(
            x=x,
            weight=weight.weight,
            rounding=weight.rounding,
            norm_weight=norm_weight,
            eps=eps,
            residual=residual,
            silu_mul=silu_mul,
        )
    given: torch.Tensor | RoundedActivations = x
    if weight.rounding is not None:
        given = round_activations(x=x, rounding=weight.rounding, norm_weight=norm_weight, eps=eps)
        norm_weight = None
    quantized: Callable[..., torch.Tensor] = quantized_single_token_linear
    is_served = supports_quantized_small_batch([weight.weight], device=x.device, dtype=x.dtype)
    # E4M3 numbers are converted so fast that the matrix instruction doesn't pay for one row.
    if is_served and (x.shape[0] > 1 or weight.weight.kind != "fp8"):
        quantized = quantized_small_batch_linear
        if norm_weight is not None and is_faster_after_norm(weight.weight, silu_mul=silu_mul):
            given, norm_weight = rms_norm(x=x, weight=norm_weight, eps=eps), None
    return quantized(
        x=given, weight=weight.weight, norm_weight=norm_weight, eps=eps, residual=residual, silu_mul=silu_mul
    )
