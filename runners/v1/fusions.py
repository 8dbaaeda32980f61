"""Parts of a model that kernels compute: norms, gated MLPs, rotary embeddings, products of one token or with
quantized weights, routers and experts.

transformers marks such parts for kernels of its hub, but not all of them, and only where the package
`kernels` is installed. So a part is recognised by what it has, and proven by what it computes: the kernel
stands in where it gives the same result, up to rounding, as the part itself with its own weights on random
inputs. Nothing here knows an architecture. Submodules of a part are called as before, so that whatever
replaced or hooked them stays in force.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dodona.kernels.attention.rotate import rotate
from dodona.kernels.linear.activation import ACTIVATIONS, gated
from dodona.kernels.linear.rms_norm import rms_norm_rows
from dodona.kernels.linear.round_activations import Rounding
from dodona.kernels.linear.single_token_linear import single_token_linear
from dodona.runners.lora.target import is_expert
from dodona.runners.quantization.linear import QuantizedLinear
from dodona.runners.quantization.products import quantized_product
from dodona.runners.v1.agreement import ROUNDING, close, random, reaching_far
from dodona.runners.v1.expert_fusions import fused_experts, fused_router
from dodona.runners.v1.lora import is_adapter_hook
from dodona.runners.v1.quantized_experts import fused_quantized_experts
from dodona.runners.v1.shared_inputs import Groups, SharedProducts, is_plain_linear

_ROTARY = "apply_rotary_pos_emb"
"""Name by which transformers' attention modules call their rotary embedding."""
_QUANTIZED_ROWS = (1, 3, 80)
"""Rows of products with quantized weights that are tried: kernels differ between them."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """A module, and what computes its forward pass in one launch."""

    module: nn.Module
    forward: Callable[..., Any]


class Fusions:
    """The fusions found in a model; installed until `removed`.

    Args:
        model: on the device where it will run.
        groups: linear layers of it that get the same input.
    """

    def __init__(self, model: nn.Module, groups: Groups = ()) -> None:
        with torch.inference_mode():
            shared = {fusion.module: fusion for group in groups for fusion in _shared(group)}
            self._fusions = (*shared.values(), *_find(model, shared))
        self._install()

    def __len__(self) -> int:
        return len(self._fusions)

    def remove(self) -> None:
        """Let every module compute its own forward pass again."""
        for fusion in self._fusions:
            fusion.module.__dict__.pop("forward", None)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """The model without them."""
        self.remove()
        try:
            yield
        finally:
            self._install()

    def _install(self) -> None:
        for fusion in self._fusions:
            fusion.module.__dict__["forward"] = fusion.forward


def _find(model: nn.Module, found: Container[nn.Module]) -> Iterator[Fusion]:
    """Fusions of the modules that are not among those `found`."""
    rotaries: dict[Callable[..., Any], Callable[..., Any] | None] = {}
    products: dict[tuple[object, ...], bool | None] = {}
    experts: dict[tuple[object, ...], bool] = {}
    for name, module in model.named_modules():
        if module in found or _is_changed(module):
            continue
        if type(module) is QuantizedLinear and is_expert(name):
            continue  # of as many tokens as are routed to it: see `fused_quantized_experts`
        forward = _with_fused_rotary(module, rotaries)
        arguments = len(inspect.signature(module.forward).parameters)
        if forward is None and arguments == 1:
            forward = (
                _norm(module)
                or _gated_mlp(module)
                or _single_token_linear(module)
                or _quantized_linear(module, products)
                or fused_router(module)
            )
        if forward is None and arguments == 3:
            forward = fused_experts(module) or fused_quantized_experts(module, experts)
        if forward is not None:
            yield Fusion(module, forward)


def _is_changed(module: nn.Module) -> bool:
    """Whether someone else changed what the module computes. What adapters add comes after it."""
    hooks = [hook for hook in module._forward_hooks.values() if not is_adapter_hook(hook)]
    return bool("forward" in module.__dict__ or hooks or module._forward_pre_hooks)


def _shared(group: Sequence[nn.Linear]) -> Sequence[Fusion]:
    """For linear layers that get the same input: products of one row by one launch."""
    weight = group[0].weight
    if weight.dtype not in ROUNDING or any(
        _is_changed(layer) or layer.weight.dtype != weight.dtype or layer.weight.device != weight.device
        for layer in group
    ):
        return ()
    fusions = [Fusion(*each) for each in SharedProducts(group).forwards()]
    x = random(1, 1, group[0].in_features, like=weight)
    return fusions if all(_agree(f.module, f.forward, x) for f in fusions) else ()


def _norm(module: Any) -> Callable[..., Any] | None:
    """For a module with a vector of weights and an epsilon: RMS norm by its weight, or 1 + its weight."""
    parameters = dict(module.named_parameters(recurse=False))
    weight = parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if len(parameters) != 1 or weight is None or weight.ndim != 1 or not isinstance(eps, float):
        return None
    if next(module.children(), None) is not None or weight.dtype not in ROUNDING:
        return None
    x = random(3, weight.numel(), like=weight)
    # As small as epsilon's root, so that leaving epsilon out would show.
    inputs = (x, x * eps**0.5)

    def make(offset: float) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor) -> torch.Tensor:
            rows = hidden_states.reshape(-1, hidden_states.shape[-1])
            if rows.stride(1) != 1:
                rows = rows.contiguous()
            return rms_norm_rows(x=rows, weight=module.weight, eps=eps, offset=offset).view(
                hidden_states.shape
            )

        return forward

    for offset in (0.0, 1.0):
        forward = make(offset)
        if all(_agree(module, forward, x) for x in inputs):
            return forward
    return None


def _gated_mlp(module: Any) -> Callable[..., Any] | None:
    """For a module of three projections: down(activation(gate(x)) * up(x))."""
    children = dict(module.named_children())
    gate, up, down = (children.get(name) for name in ("gate_proj", "up_proj", "down_proj"))
    if not (is_plain_linear(gate) and is_plain_linear(up) and is_plain_linear(down)):
        return None
    if gate.weight.dtype not in ROUNDING or next(module.parameters(recurse=False), None) is not None:
        return None
    x = random(1, 3, gate.in_features, like=gate.weight)
    inputs = (x, reaching_far(x, gate.weight))

    def make(activation: str) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor) -> torch.Tensor:
            g, u = module.gate_proj(hidden_states), module.up_proj(hidden_states)
            product = gated(gate=g.flatten(0, -2), up=u.flatten(0, -2), activation=activation)
            down: torch.Tensor = module.down_proj(product.view(g.shape))
            return down

        return forward

    for activation in ACTIVATIONS:
        forward = make(activation)
        if all(_agree(module, forward, each) for each in inputs):
            return forward
    return None


def _single_token_linear(module: Any) -> Callable[..., Any] | None:
    """For a linear layer: a product of one row by `single_token_linear`, which reads weights faster than a
    matrix product of the library does; of more rows as before."""
    if not is_plain_linear(module) or module.weight.dtype not in ROUNDING:
        return None
    inner = module.in_features

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        weight, bias = module.weight, module.bias
        if hidden_states.numel() != inner:
            return nn.functional.linear(hidden_states, weight, bias)
        product = single_token_linear(x=hidden_states.reshape(1, inner).contiguous(), weight=weight)
        if bias is not None:
            product += bias
        return product.view(*hidden_states.shape[:-1], -1)

    return forward if _agree(module, forward, random(1, 1, inner, like=module.weight)) else None


def _quantized_linear(module: Any, known: dict[tuple[object, ...], bool | None]) -> Callable[..., Any] | None:
    """For a quantized linear layer: products with the numbers as they are stored, in place of widening the
    whole weight. Not where inputs are rounded by stored scales or to numbers around a zero point.

    `known` has of each shape and scheme that was tried whether one row may be computed by programs that stay
    on their multiprocessor; None: the kernels don't serve it.
    """
    if type(module) is not QuantizedLinear or module.kind == "fp4" or module.dtype not in ROUNDING:
        return None
    activations = module.activations
    if activations is not None and not (activations.dynamic and activations.symmetric):
        return None
    rounding = None if activations is None else Rounding(activations.kind, activations.group_size)
    inner = module.in_features

    def make(persistent: bool) -> Callable[..., Any]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            if rounding is not None and module.round_input is None:  # inside `unrounded_inputs`
                return QuantizedLinear.forward(module, x)
            rows = x.reshape(-1, inner)
            if module.order is not None:
                rows = rows.index_select(1, module.order)
            product = quantized_product(
                x=rows, weight=module.quantized_weight, rounding=rounding, persistent=persistent
            )
            if module.bias is not None:
                product += module.bias
            return product.view(*x.shape[:-1], -1)

        return forward

    weight = module.quantized_weight
    case = (
        *(weight.kind, weight.rows, inner, weight.group_size, weight.shared_rows, weight.scales.dtype),
        *(weight.zeros is None, module.dtype, rounding),
    )
    if case not in known:
        like = torch.empty(0, dtype=module.dtype, device=module.data.device)
        inputs = [random(1, rows, inner, like=like) for rows in _QUANTIZED_ROWS]
        served = (p for p in (True, False) if all(_agree(module, make(p), x) for x in inputs))
        known[case] = next(served, None)
    persistent = known[case]
    return None if persistent is None else make(persistent)


def _with_fused_rotary(
    module: nn.Module, known: dict[Callable[..., Any], Callable[..., Any] | None]
) -> Callable[..., Any] | None:
    """For a module whose forward pass calls a global `apply_rotary_pos_emb`: the same code with a fused one.

    `known` has the fused function of each such function that was tried.
    """
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or _ROTARY not in forward.__code__.co_names:
        return None
    original = forward.__globals__.get(_ROTARY)
    parameter = next(module.parameters(), None)
    if not callable(original) or parameter is None:
        return None
    if original not in known:
        known[original] = _fused_rotary(original, parameter)
    fused = known[original]
    if fused is None:
        return None
    names = {**forward.__globals__, _ROTARY: fused}
    copy = types.FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return types.MethodType(copy, module)


def _fused_rotary(original: Callable[..., Any], like: torch.Tensor) -> Callable[..., Any] | None:
    """`original` by one launch where it gives what `rotate` does for shapes [1, heads, tokens, head size]."""

    def fused(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fits = unsqueeze_dim == 1 and q.ndim == k.ndim == 4 and q.shape[0] == k.shape[0] == cos.shape[0] == 1
        if not fits or not q.shape[-1] == k.shape[-1] == cos.shape[-1] == sin.shape[-1]:
            plain: tuple[torch.Tensor, torch.Tensor] = original(q, k, cos, sin, unsqueeze_dim)
            return plain
        rotated = rotate(q=q[0].transpose(0, 1), k=k[0].transpose(0, 1), cos=cos[0], sin=sin[0])
        return rotated[0].transpose(0, 1)[None], rotated[1].transpose(0, 1)[None]

    dtype = like.dtype if like.dtype in ROUNDING else torch.float32
    q, k, cos, sin = (
        random(1, *shape, like=like).to(dtype) for shape in ((4, 3, 16), (2, 3, 16), (3, 16), (3, 16))
    )
    try:
        expected = original(q, k, cos, sin)
        found = fused(q, k, cos, sin)
        same = all(close(a, b) for a, b in zip(expected, found, strict=True))
    except Exception:  # other arguments, or complex numbers
        return None
    return fused if same else None


def _agree(module: nn.Module, forward: Callable[..., Any], x: torch.Tensor) -> bool:
    """Whether `forward` computes what the module does for `x`."""
    try:
        expected = module(x)
        return isinstance(expected, torch.Tensor) and close(expected, forward(x))
    except Exception:  # it takes more than one argument, or the GPU can't run the kernel
        return False
