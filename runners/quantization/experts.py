"""Experts of mixture-of-experts layers, whose weights stay compressed.

transformers holds the experts of a layer in one module (a *stack*), with their weights in parameters of three
dimensions. `QuantizedExperts` takes its place, with linear layers for each expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

ExpertPart = Literal["gating", "up", "gate_up", "down"]
"""A linear layer of an expert. Gate and up projections are two or one, whose rows the model's code parts.

They are names of modules, and none that transformers renames while it loads: in versions before 5.21 it takes
Phi-MoE's `gate.weight_packed` for the router's weight.
"""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """One linear layer of all experts of a layer."""

    weight: torch.Tensor
    """[experts, out, in]"""
    bias: torch.Tensor | None
    """[experts, out]"""


MakeExpert = Callable[[int, ExpertPart, torch.Tensor, torch.Tensor | None], torch.nn.Module]
"""(expert, part, weight [out, in], bias [out]) → the linear layer."""


def is_expert_stack(module: torch.nn.Module) -> bool:
    """Whether the module is the experts of a layer as transformers' decorator of experts knows them, and has
    no parameters beside their weights and biases."""
    found: Any = module
    return (
        hasattr(found, "has_gate")
        and hasattr(found, "is_transposed")
        and isinstance(getattr(found, "down_proj", None), torch.nn.Parameter)
        and {name for name, _ in found.named_parameters(recurse=False)} == set(_parameters(found))
    )


def has_separate_parts(stack: torch.nn.Module) -> bool:
    """Whether each expert's weights are linear layers of their own: without biases, and gate before up."""
    found: Any = stack
    return not found.is_transposed and not found.has_bias and bool(found.is_concatenated)


def _parameters(stack: Any) -> list[str]:
    names = ["gate_up_proj" if stack.has_gate else "up_proj", "down_proj"]
    return [*names, *(f"{name}_bias" for name in names if stack.has_bias)]


def stacked_parts(stack: torch.nn.Module) -> dict[ExpertPart, ExpertWeights]:
    """The parts as transformers stacks them: "gate_up" or "up", and "down"."""
    found: Any = stack

    def part(name: str) -> ExpertWeights:
        weight = getattr(found, name)
        bias = getattr(found, f"{name}_bias") if found.has_bias else None
        return ExpertWeights(weight.transpose(1, 2) if found.is_transposed else weight, bias)

    if found.has_gate:
        return {"gate_up": part("gate_up_proj"), "down": part("down_proj")}
    return {"up": part("up_proj"), "down": part("down_proj")}


def separate_parts(stack: torch.nn.Module) -> dict[ExpertPart, ExpertWeights]:
    """The parts of experts that `has_separate_parts`: "gating" (if any), "up" and "down"."""
    parts = stacked_parts(stack)
    if "gate_up" not in parts:
        return parts
    gate, up = parts["gate_up"].weight.chunk(2, dim=1)
    return {"gating": ExpertWeights(gate, None), "up": ExpertWeights(up, None), "down": parts["down"]}


class QuantizedExperts(torch.nn.Module):
    """The experts of a layer: a module for each, which has the linear layers that `parts` names.

    stack: transformers' module, whose activation, gating and norm are used; its parameters are removed.
    """

    def __init__(
        self, stack: torch.nn.Module, parts: Mapping[ExpertPart, ExpertWeights], make: MakeExpert
    ) -> None:
        super().__init__()
        self._is_joined = "gate_up" in parts
        for index in range(parts["down"].weight.shape[0]):
            expert = torch.nn.Module()
            for part, stacked in parts.items():
                bias = None if stacked.bias is None else stacked.bias[index]
                expert.add_module(part, make(index, part, stacked.weight[index], bias))
            self.add_module(str(index), expert)
        for name in _parameters(stack):
            delattr(stack, name)
        # Its own modules are found below this one, and it is not: only its functions are called.
        for name, child in stack.named_children():
            self.add_module(name, child)
        self._functions: tuple[Any, ...] = (stack,)
        self._held = range(parts["down"].weight.shape[0])

    def keep(self, rank: int, ranks: int) -> None:
        """Keep one rank's experts alone; results are then to be summed over the ranks."""
        count = len(self._held)
        held = range(count * rank // ranks, count * (rank + 1) // ranks)
        for index in self._held:
            if index not in held:
                delattr(self, str(index))
        self._held = held

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[tokens, hidden]: for each token of `hidden_states` [tokens, hidden] the results of those of its
        experts that are kept, summed.

        top_k_index: [tokens, k] int64, each token's experts. top_k_weights: [tokens, k], by which their
        results are multiplied.
        """
        results = hidden_states.new_zeros(*top_k_index.shape, hidden_states.shape[-1])
        for index in torch.bincount(top_k_index.flatten()).nonzero().flatten().tolist():
            if index not in self._held:
                continue
            token, place = torch.where(top_k_index == index)
            computed = self._expert(index, hidden_states[token])
            results[token, place] = (computed * top_k_weights[token, place, None]).to(results.dtype)
        return results.sum(dim=1)

    def _expert(self, index: int, x: torch.Tensor) -> torch.Tensor:
        expert: Any = self.get_submodule(str(index))
        return self.compute(x, lambda part, given: expert.get_submodule(part)(given))

    def compute(
        self, x: torch.Tensor, linear: Callable[[ExpertPart, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What experts make of `x`, where `linear` computes the layers that their parts are."""
        (family,) = self._functions
        if self._is_joined:
            inner = family._apply_gate(linear("gate_up", x))
        elif family.has_gate:
            inner = family._apply_gate(torch.cat((linear("gating", x), linear("up", x)), dim=-1))
        else:
            inner = family.act_fn(linear("up", x))
        out = linear("down", inner)
        if getattr(family, "has_post_expert_norm", False):  # transformers 5.17 has no such experts
            out = family.post_expert_norm(out)
        return out

    def layers(self) -> dict[ExpertPart, list[torch.nn.Module]]:
        """The linear layers of the experts that are kept, by part."""
        parts: tuple[ExpertPart, ...] = ("gate_up", "gating", "up", "down")
        experts = [self.get_submodule(str(index)) for index in self._held]
        return {
            part: [expert.get_submodule(part) for expert in experts]
            for part in parts
            if hasattr(experts[0], part)
        }
