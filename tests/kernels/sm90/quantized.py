"""Products with quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.linear.eight_bit_linear import eight_bit_linear
from dodona.kernels.linear.quantized_linear import quantized_linear, widen
from dodona.kernels.linear.quantized_persistent_linear import quantized_persistent_linear
from dodona.kernels.linear.quantized_rows_linear import RowsTiles, quantized_rows_linear
from dodona.kernels.linear.quantized_single_token_linear import quantized_single_token_linear
from dodona.kernels.linear.quantized_small_batch_linear import quantized_small_batch_linear
from dodona.kernels.linear.quantized_weight import QuantizedWeight
from dodona.kernels.linear.round_activations import RoundedActivations, Rounding, round_activations

GROUP = 128


def make(kind: str, rows: int, inner: int) -> QuantizedWeight:
    if kind.startswith("int4"):
        group = None if kind == "int4-rows" else GROUP
        scales = torch.zeros(rows, inner // GROUP if group else 1, dtype=torch.bfloat16)
        zeros = scales.to(torch.int8) if kind == "int4-zeros" else None
        return QuantizedWeight("int4", torch.zeros(rows, inner // 8, dtype=torch.int32), scales, zeros, group)
    if kind == "int8":
        return QuantizedWeight("int8", torch.zeros(rows, inner, dtype=torch.int8), torch.zeros(rows, 1))
    data = torch.zeros(rows, inner, dtype=torch.float8_e4m3fn)
    if kind == "fp8-block":
        return QuantizedWeight("fp8", data, torch.zeros(rows, inner // GROUP), None, GROUP, 128)
    return QuantizedWeight("fp8", data, torch.zeros(rows, 1))


def inputs(kind: str, tokens: int, inner: int) -> torch.Tensor | RoundedActivations:
    x = torch.zeros(tokens, inner, dtype=torch.bfloat16)
    if not kind.startswith("fp8"):
        return x
    rounding = Rounding("fp8", GROUP if kind == "fp8-block" else None)
    return round_activations(x=x, rounding=rounding, norm_weight=torch.zeros(inner, dtype=torch.bfloat16))


def products(kind: str, function: Callable[..., torch.Tensor], tokens: int, inner: int) -> None:
    x = inputs(kind, tokens, inner)
    norm = None if isinstance(x, RoundedActivations) else torch.zeros(inner, dtype=torch.bfloat16)
    function(x=x, weight=make(kind, 256, inner), norm_weight=norm, eps=1e-6)
    function(x=x, weight=make(kind, 512, inner), norm_weight=norm, eps=1e-6, silu_mul=True)
    residual = torch.zeros(tokens, 256, dtype=torch.bfloat16)
    function(x=x, weight=make(kind, 256, inner), residual=residual)


def one_row_persistent(kind: str, inner: int) -> None:
    x, norm = torch.zeros(1, inner, dtype=torch.bfloat16), torch.zeros(inner, dtype=torch.bfloat16)
    rounding = Rounding("fp8", GROUP if kind == "fp8-block" else None) if kind.startswith("fp8") else None
    function = partial(quantized_persistent_linear, x=x, rounding=rounding, eps=1e-6)
    function(weight=make(kind, 256, inner), norm_weight=norm)
    function(weight=make(kind, 512, inner), norm_weight=norm, silu_mul=True)
    function(weight=make(kind, 256, inner), residual=torch.zeros(1, 256, dtype=torch.bfloat16))


def many_rows(kind: str, rows: int) -> None:
    quantized_linear(x=inputs(kind, rows, 1024), weight=make(kind, 256, 1024))
    widen(make(kind, 256, 1024), torch.bfloat16)


def few_rows(kind: str, rows: int, tiles: RowsTiles) -> None:
    x = torch.zeros(rows, 1024, dtype=torch.bfloat16)
    quantized_rows_linear(x=x, weight=make(kind, 256, 1024), tiles=tiles)


def eight_bits(kind: str, rows: int) -> None:
    rounding = Rounding("int8" if kind == "int8" else "fp8", GROUP if kind == "fp8-block" else None)
    x = round_activations(x=torch.zeros(rows, 1024, dtype=torch.bfloat16), rounding=rounding, narrow=True)
    eight_bit_linear(x=x, weight=make(kind, 256, 1024), dtype=torch.bfloat16)


KINDS = ("int4", "int4-zeros", "int4-rows", "int8", "fp8", "fp8-block")
CASES: dict[str, Callable[[], None]] = {
    **{f"{k} one row": partial(products, k, quantized_single_token_linear, 1, 4096) for k in KINDS},
    **{f"{k} one row, persistent": partial(one_row_persistent, k, 4096) for k in KINDS},
    **{f"{k} small batch": partial(products, k, quantized_small_batch_linear, 1, 4096) for k in KINDS},
    "int4 16 tokens": partial(products, "int4", quantized_small_batch_linear, 16, 1024),
    **{
        f"{k} eight bits, {rows} rows": partial(eight_bits, k, rows)
        for k in ("int8", "fp8", "fp8-block")
        for rows in (20, 100)
    },
    "int4-zeros 20 rows, fused": partial(few_rows, "int4-zeros", 20, RowsTiles(64, 2, 4)),
    "int8 100 rows, fused": partial(few_rows, "int8", 100, RowsTiles(128, 1, 3)),
    "fp8-block 50 rows, fused": partial(few_rows, "fp8-block", 50, RowsTiles(128, 2, 3)),
    **{f"{k} {rows} rows": partial(many_rows, k, rows) for k in KINDS for rows in (2, 100)},
}
