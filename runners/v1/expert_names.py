"""What a checkpoint calls the weights of experts, by transformers' own conversions, which stack them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from dodona.oracle.models.quantization import QuantizationConfig
from dodona.runners.quantization.experts import (
    ExpertPart,
    has_separate_parts,
    is_expert_stack,
    separate_parts,
)
from dodona.runners.quantization.replacement import ExpertNames, expert_schemes

_STORED = re.compile(r"(.*experts)\.\d+\.([\w.]+)\.\w+")
_PARTS: Mapping[str, tuple[ExpertPart, ...]] = {
    "gate_up_proj": ("gating", "up"),
    "up_proj": ("up",),
    "down_proj": ("down",),
}
"""Parameter of a stack → the parts whose weights a conversion joins to it, in its order."""
_JOINS = {"MergeModulelist", "Concatenate"}


def expert_names(model: torch.nn.Module, stored: Iterable[str]) -> dict[str, ExpertNames]:
    """What a checkpoint calls the experts' weights, by the module that has them in `model`; only of modules
    of which it stores each weight by itself.

    stored: the names of the checkpoint's tensors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transformed: Any = model
    mapping = get_model_conversion_mapping(transformed)
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    joins = {
        pattern: (converter, place)
        for converter in converters
        for place, pattern in enumerate(converter.source_patterns)
        if {type(operation).__name__ for operation in converter.operations} <= _JOINS
    }
    stacks = {
        name: module
        for name, module in model.named_modules()
        if is_expert_stack(module) and has_separate_parts(module)
    }
    state = model.state_dict()
    names: dict[tuple[str, str], dict[ExpertPart, str]] = {}
    for prefix, leaf in sorted({m.group(1, 2) for m in map(_STORED.fullmatch, stored) if m}):
        target, pattern = rename_source_key(
            f"{prefix}.0.{leaf}.weight", renamings, converters, transformed.base_model_prefix, state
        )
        path, _, parameter = target.rpartition(".")
        if path not in stacks or pattern not in joins or parameter not in _PARTS:
            continue
        parts, (converter, place) = _PARTS[parameter], joins[pattern]
        if len(converter.source_patterns) == len(parts):
            names.setdefault((path, prefix), {})[parts[place]] = leaf
    return {
        path: ExpertNames(prefix, found)
        for (path, prefix), found in names.items()
        if set(found) == set(separate_parts(stacks[path]))
    }


def lacking_expert_weights(model: torch.nn.Module, stored: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the experts' weights that a checkpoint lacks, or has in another shape than `model`.

    stored: the shapes of the checkpoint's tensors by name.
    """
    lacking: list[str] = []
    for path, names in expert_names(model, stored).items():
        parts = separate_parts(model.get_submodule(path))
        for part, leaf in names.names.items():
            count, *shape = parts[part].weight.shape
            each = [f"{names.prefix}.{index}.{leaf}.weight" for index in range(count)]
            lacking += [name for name in each if stored.get(name) != tuple(shape)]
    return lacking


def renamed_parts(
    model: torch.nn.Module, experts: Mapping[str, ExpertNames], config: QuantizationConfig
) -> dict[str, str]:
    """Patterns of stored names, and what takes their places, so that the parts of quantized experts are
    loaded one by one: PREFIX.NUMBER.gate_proj.* → PREFIX.NUMBER.gating.*, say."""
    prefixes: dict[tuple[ExpertPart, str], list[str]] = {}
    for path, names in experts.items():
        count = separate_parts(model.get_submodule(path))["down"].weight.shape[0]
        if expert_schemes(config, names, count):
            for part, leaf in names.names.items():
                prefixes.setdefault((part, leaf), []).append(re.escape(names.prefix))
    return {
        rf"^((?:{'|'.join(found)})\.\d+)\.{re.escape(leaf)}\.": rf"\1.{part}."
        for (part, leaf), found in prefixes.items()
    }
