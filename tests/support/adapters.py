"""LoRA adapters in PEFT's form, drawn at random, and the models that they make when they are merged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_adapter(
    path: Path,
    layers: Mapping[str, tuple[int, int]],
    *,
    r: int = 4,
    seed: int = 0,
    spread: float = 0.3,
    ranks: Mapping[str, int] | None = None,
    change: Any = None,
    **fields: Any,
) -> Path:
    """A directory with an adapter of these layers (name -> in, out features).

    ranks: of layers whose rank is not `r`. change(tensors): spoils them. fields: of adapter_config.json.
    """
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in layers.items():
        rank = (ranks or {}).get(name, r)
        prefix = f"base_model.model.{name}.lora_"
        tensors[f"{prefix}A.weight"] = torch.randn(rank, inner, generator=generator) * spread
        tensors[f"{prefix}B.weight"] = torch.randn(outer, rank, generator=generator) * spread
    if change is not None:
        change(tensors)
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": r, "lora_alpha": 8, "bias": "none", "task_type": "CAUSAL_LM",
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "base_model_name_or_path": "base", "lora_dropout": 0.1, "inference_mode": True, **fields,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def linear_layers(model: torch.nn.Module, ends: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
    """In and out features of a model's linear layers, by name, of those with these last parts of the name."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if ends is not None and name.rpartition(".")[2] not in ends:
            continue
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D":
            weight: Any = module.weight
            found[name] = (weight.shape[0], weight.shape[1])
    return found


def merge(model: Any, path: Path, scales: Mapping[str, float] | float) -> Any:
    """Add an adapter to a model's weights: W + scale * B A. `scales` by layer, or one for all."""
    from safetensors.torch import load_file

    tensors = load_file(path / "adapter_model.safetensors")
    for name, module in model.named_modules():
        a = tensors.get(f"base_model.model.{name}.lora_A.weight")
        if a is None:
            continue
        b = tensors[f"base_model.model.{name}.lora_B.weight"]
        scale = scales if isinstance(scales, float) else scales[name]
        delta = scale * (b.double() @ a.double())
        if type(module).__name__ == "Conv1D":
            delta = delta.T
        if name == "lm_head":  # it may be tied to the embedding, which adapters leave alone
            module.weight = torch.nn.Parameter(module.weight.data.clone())
        module.weight.data += delta.to(module.weight.dtype)
    return model


def scale_of(alpha: float, r: int, *, rslora: bool = False) -> float:
    """PEFT's factor."""
    return alpha / (math.sqrt(r) if rslora else r)
