"""Tensor parallelism: each rank of a group keeps a share of every layer's weights.

Which weights are split, and how, is transformers' own plan of the model (`model.tp_plan`): by name, with "*"
for a layer's number, the style of a Linear or of the experts' stacked weights. What a plan leaves out stays
whole on every rank. The sums between ranks are our own, on plain tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import Group
from dodona.runners.quantization.experts import QuantizedExperts
from dodona.runners.quantization.linear import QuantizedLinear
from dodona.runners.v1.quantized_shares import keep_inputs, keep_outputs

WHOLE_STYLES = frozenset(
    {
        "embedding_rowwise",
        "embedding_colwise",
        "replicate",
        "replicated_with_grad_allreduce",
        "mla_kv_a_proj",  # what it adds is for gradients
        "local_params",  # of a module whose parameters have styles of their own
        # Pairs of them leave the layer between unsplit; keeping the weights whole computes the same.
        "colwise_gather_output",
        "colwise_rep",
        "rowwise_split_input",
        "rowwise_rep",
    }
)
"""Styles of modules that stay whole on every rank."""

SPLIT_STYLES = frozenset(
    {"colwise", "rowwise", "packed_colwise", "packed_rowwise", "moe_tp_experts", "moe_identity_expert"}
)
"""Styles that `shard_model` carries out."""

_WHOLE_HEADS = ("kv_b_proj", "query_key_value")
"""Names of linear layers that make keys and values of as many heads as there are query heads."""


@dataclass(frozen=True, slots=True)
class LinearShare:
    """The part of a linear layer that a rank keeps."""

    of_inputs: bool
    """Whether its inputs are split, in place of its outputs."""
    parts: int
    """How many equal parts there are."""
    index: int
    """This rank's one."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What a rank keeps of a model; layers and modules that are not there stay whole."""

    linears: Mapping[str, LinearShare] = field(default_factory=dict)
    """Of linear layers, by name."""
    kv_parts: Mapping[str, int] = field(default_factory=dict)
    """In how many equal parts the key/value heads of an attention module are split, by its name."""


def shard_model(model: torch.nn.Module, group: Group, *, whole_experts: bool = False) -> Shares:
    """Keep this rank's share of the weights of a transformers model, in place. Returns what it is.

    whole_experts: each rank has some experts of a layer, in place of a share of each of them. Quantized
    experts always stay whole.

    Nothing happens in a group of one. Raises UnsupportedConfiguration where the model has no plan, or one
    with a style that is not known here, where a size doesn't divide by the number of ranks, and where
    `whole_experts` finds no experts, or some that don't say how many they are.
    """
    if group.size == 1:
        return Shares()
    plan = _plan(model)
    if whole_experts and "moe_tp_experts" not in plan.values():
        raise UnsupportedConfiguration.lacking(
            "v1", "expert-parallel-families", why=f"{type(model).__name__}: its plan has no experts"
        )
    heads = _kv_heads(model, plan, group.size)
    linears: dict[str, LinearShare] = {}
    kv_parts: dict[str, int] = {}
    for name, module in model.named_modules():
        style = plan.get(_pattern(name))
        if style in ("colwise", "rowwise") and not isinstance(module, (torch.nn.Linear, QuantizedLinear)):
            raise _refusal(model, f"{name} is {style} in its plan, but no Linear")
        if name in heads:  # before its projections
            kv_parts[name] = _share_heads(module, heads[name], group)
        if style == "colwise":
            parent, _, last = name.rpartition(".")
            parts = group.size
            if last in _WHOLE_HEADS:
                kv_parts[parent] = parts
            elif last in ("k_proj", "v_proj") and parent in heads:
                parts = kv_parts[parent]
            linears[name] = LinearShare(False, parts, group.rank * parts // group.size)
            _split_outputs(name, module, linears[name])
        elif style == "rowwise":
            linears[name] = _split_inputs(name, module, group)
        elif style == "moe_identity_expert":
            if group.rank:  # every rank hands on the same tokens, and the sum over ranks has them once
                module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
        elif style == "moe_tp_experts":
            module.register_forward_hook(lambda _module, _args, output: group.all_reduce(output))
            if isinstance(module, QuantizedExperts):
                module.keep(group.rank, group.size)
                continue
            if whole_experts:
                _keep_experts(name, module, group)
                continue
        for parameter_name, parameter in list(module.named_parameters(recurse=False)):
            where = f"{name}.{parameter_name}"
            style = plan.get(_pattern(where))
            if style is not None and style not in WHOLE_STYLES:
                _replace(module, parameter_name, _share_of(where, parameter, style, group))
    return Shares(linears, kv_parts)


def _plan(model: torch.nn.Module) -> Mapping[str, str]:
    plan: dict[str, str] = dict(getattr(model, "tp_plan", None) or {})
    unknown = sorted(set(plan.values()) - WHOLE_STYLES - SPLIT_STYLES)
    if unknown:
        raise _refusal(model, f"its plan has styles that are not known here: {', '.join(unknown)}")
    if not set(plan.values()) & SPLIT_STYLES:
        raise _refusal(model, "transformers has no plan that splits its layers")
    return plan


def _pattern(name: str) -> str:
    """The name with "*" for each number, as plans have it."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _kv_heads(model: Any, plan: Mapping[str, str], ranks: int) -> dict[str, int]:
    """Key/value heads of the attention modules whose keys have a projection that is split, by name: layers
    may differ. No rank may hold a part of a head."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if plan.get(_pattern(f"{name}.k_proj")) != "colwise":
            continue
        size, per_head = getattr(module, "head_dim", None), getattr(module, "num_key_value_groups", None)
        # A layer that reuses the keys of an earlier one has no projection of its own, and as many heads.
        keys = getattr(module, "k_proj", None)
        projection = getattr(module, "q_proj", None) if keys is None else keys
        width = getattr(projection, "out_features", None)
        if not (size and per_head and width):
            raise _refusal(model, f"{name} does not say what its heads are (head_dim, num_key_value_groups)")
        heads = width // size if keys is not None else width // size // per_head
        _check_heads(name, heads * per_head, heads, ranks)
        found[name] = heads
    split = {pattern.rpartition(".")[2] for pattern, style in plan.items() if style == "colwise"}
    if not found and split.intersection(_WHOLE_HEADS):
        config = model.config.get_text_config(decoder=True)
        query_heads = int(config.num_attention_heads)
        heads = int(getattr(config, "num_key_value_heads", None) or query_heads)
        _check_heads(type(model).__name__, query_heads, heads, ranks)
    return found


def _check_heads(name: str, query_heads: int, kv_heads: int, ranks: int) -> None:
    if query_heads % ranks:
        raise _uneven(f"{name}: attention heads", query_heads, ranks)
    if kv_heads % ranks and ranks % kv_heads:
        raise _uneven(f"{name}: key/value heads", kv_heads, ranks)


def _share_heads(module: Any, heads: int, group: Group) -> int:
    """In how many parts an attention module's key/value heads are split; where there are fewer than ranks,
    neighbours share one, and the module is told how many query heads do here."""
    if heads >= group.size:
        return group.size
    module.num_key_value_groups = module.num_key_value_groups * heads // group.size
    return heads


def _split_outputs(name: str, linear: Any, share: LinearShare) -> None:
    """Keep the rows of a Linear that make this rank's outputs."""
    if isinstance(linear, QuantizedLinear):
        count = _whole_part(name, linear.out_features, share.parts)
        keep_outputs(linear, share.index * count, count)
        return
    for parameter_name in ("weight", "bias"):
        parameter = getattr(linear, parameter_name)
        if parameter is not None:
            _replace(linear, parameter_name, _part(name, parameter, 0, share.parts, share.index))
    linear.out_features = linear.weight.shape[0]


def _split_inputs(name: str, linear: Any, group: Group) -> LinearShare:
    """Keep the columns of a Linear that take this rank's inputs; its output is the sum over ranks."""
    # The bias comes once, after the sum. It keeps its place in the state dict under a name of its own.
    if isinstance(linear, QuantizedLinear):
        _whole_part(name, linear.in_features, group.size)
        keep_inputs(name, linear, group)
        linear.register_buffer("bias_after_sum", linear.bias)
        linear.bias = None
    else:
        _replace(linear, "weight", _part(name, linear.weight, 1, group.size, group.rank))
        linear.in_features = linear.weight.shape[1]
        linear.register_parameter("bias_after_sum", linear.bias)
        linear.register_parameter("bias", None)

    def add_up(module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        total = group.all_reduce(output)
        return total if module.bias_after_sum is None else total + module.bias_after_sum

    linear.register_forward_hook(add_up)
    return LinearShare(True, group.size, group.rank)


def _keep_experts(name: str, module: Any, group: Group) -> None:
    """Keep this rank's experts of stacked weights [experts, ...]; its output is the sum over ranks.

    Tokens are on all ranks, so none has to be sent: a rank computes what is routed to its experts.
    """
    total = getattr(module, "num_experts", None)
    if not isinstance(total, int):
        raise UnsupportedConfiguration.lacking(
            "v1", "expert-parallel-families", why=f"{name} does not say how many experts it has (num_experts)"
        )
    count = total // group.size
    for parameter_name, parameter in list(module.named_parameters(recurse=False)):
        _replace(module, parameter_name, _part(name, parameter, 0, group.size, group.rank))
    module.num_experts = count
    # transformers' kernels for experts then skip the number beyond the last expert.
    module._is_expert_parallel = True

    def route(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, experts, weights = args
        here = experts - group.rank * count
        elsewhere = (here < 0) | (here >= count)
        return hidden_states, here.masked_fill(elsewhere, count), weights.masked_fill(elsewhere, 0.0)

    module.register_forward_pre_hook(route)


def _share_of(name: str, parameter: torch.Tensor, style: str, group: Group) -> torch.Tensor:
    """This rank's share of the experts' stacked weights [experts, rows, columns].

    "packed" weights are two matrices, gate and up, one after the other in the dimension that is split.
    """
    dim = parameter.ndim - (2 if style in ("colwise", "packed_colwise") else 1)
    if not style.startswith("packed"):
        return _part(name, parameter, dim, group.size, group.rank)
    halves = parameter.chunk(2, dim)
    return torch.cat([_part(name, half, dim, group.size, group.rank) for half in halves], dim)


def _part(name: str, tensor: torch.Tensor, dim: int, parts: int, index: int) -> torch.Tensor:
    count = _whole_part(name, tensor.shape[dim], parts)
    return tensor.narrow(dim, index * count, count).clone()


def _whole_part(name: str, size: int, parts: int) -> int:
    if size % parts:
        raise _uneven(name, size, parts)
    return size // parts


def _replace(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))


def _uneven(name: str, size: int, ranks: int) -> UnsupportedConfiguration:
    why = f"{name}: {size} does not divide by {ranks} ranks; lower tensor_parallel_size"
    return UnsupportedConfiguration.lacking("v1", "tensor-parallel-sizes", why=why)


def _refusal(model: torch.nn.Module, why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking(
        "v1", "tensor-parallel-families", why=f"{type(model).__name__}: {why}"
    )
