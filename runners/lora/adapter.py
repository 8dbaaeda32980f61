"""`Adapter`: the weights of one LoRA adapter in host memory, checked against the model's layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import check_folder
from dodona.runners.lora.peft_config import PeftConfig
from dodona.runners.lora.request import LoRARequest
from dodona.runners.lora.target import LoRATarget, is_expert
from dodona.runners.safetensors_file import open_safetensors

WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_READABLE = ("F32", "F16", "BF16")
_MAX_FILE = 1 << 36


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """What an adapter adds to one linear layer: scale * B A x."""

    a: torch.Tensor
    """[rank, in_features]."""
    b: torch.Tensor
    """[out_features, rank]."""
    scale: float

    def scaled_b(self) -> torch.Tensor:
        """B times the scale, [out_features, rank] in fp32."""
        return self.b.float() * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class SavedLinear:
    """A linear layer that an adapter has in place of the model's."""

    weight: torch.Tensor
    """[out_features, in_features]."""
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter. Immutable: an adapter that is read again is another value."""

    lora_name: str
    lora_int_id: int
    lora_path: str
    key: bytes
    """A hash of what it computes. KV that was computed with an adapter belongs to its key."""
    layers: Mapping[str, LoRAWeights]
    """By the name of the module."""
    saved: Mapping[str, SavedLinear] = field(default_factory=dict)
    """Last layers in place of the model's, by the name of the module."""


def read_adapter(request: LoRARequest, targets: Mapping[str, LoRATarget], *, max_lora_rank: int) -> Adapter:
    """Read a directory that PEFT's `save_pretrained` wrote.

    targets: the layers of the model that can have adapters, by name. Raises ConfigError that names file and
    field or tensor: for what can't be served, for a rank over `max_lora_rank`, and for tensors that do not
    belong to these layers.
    """
    directory = Path(request.lora_path)
    config = PeftConfig.load(directory, serves_heads=any(target.is_head for target in targets.values()))
    file = directory / WEIGHTS_FILE
    if not file.exists():
        pickled = (directory / "adapter_model.bin").exists()
        raise ConfigError(
            f"{file}: no such file; "
            + ("adapter_model.bin is not read: save it as safetensors" if pickled else "check the path")
        )
    check_folder(directory, suffixes=(".safetensors",), limit=_MAX_FILE)
    with open_safetensors(file, of="the adapter") as stored:
        saved = _read_saved(file, stored, config, targets)
        layers = _read_layers(file, stored, config, targets, max_lora_rank)
    for module in targets:
        if config.targets(module) and module not in layers and module not in saved:
            raise ConfigError(
                f"{file}: lacks the adapter of {module!r}, which {config.file} names as a target; "
                "fetch the adapter again"
            )
    key = _digest(layers, saved)
    return Adapter(request.lora_name, request.lora_int_id, request.lora_path, key, layers, saved)


def _read_layers(
    file: Path, stored: Any, config: PeftConfig, targets: Mapping[str, LoRATarget], max_lora_rank: int
) -> dict[str, LoRAWeights]:
    sides: dict[str, dict[str, str]] = {}
    for name in stored.keys():  # noqa: SIM118 - not a mapping
        found = _NAME.fullmatch(name)
        if found is None and _is_saved(name, config, targets):
            continue
        if found is None:
            raise ConfigError(
                f"{file}: tensor {name!r:.120}: not supported: expected only "
                "base_model.model.<layer>.lora_A.weight and lora_B.weight"
            )
        sides.setdefault(found["module"], {})[found["side"]] = name
    if not sides:
        raise ConfigError(f"{file}: has no tensors; fetch the adapter again")
    layers: dict[str, LoRAWeights] = {}
    for module, names in sides.items():
        if module not in targets or config.targets(module) is False:
            if module in targets:
                why = f"{config.file} does not name it as a target"
            elif is_expert(module):
                why = "experts have no adapters; those of its other layers can be served (target_modules)"
            else:
                why = "the model has no linear layer of this name that adapters can change"
            raise ConfigError(f"{file}: an adapter of {module!r:.120}: {why}")
        rank, target = config.rank(module), targets[module]
        if rank > max_lora_rank:
            raise ConfigError(
                f"{config.file}: the adapter of {module!r} has rank {rank}, over "
                f"max_lora_rank={max_lora_rank}; raise max_lora_rank"
            )
        down = _read(file, stored, names.get("A"), f"{module}.lora_A.weight", (rank, target.in_features))
        up = _read(file, stored, names.get("B"), f"{module}.lora_B.weight", (target.out_features, rank))
        layers[module] = LoRAWeights(down, up, config.scale(module))
        # A number that is none would reach the rows of other adapters in the same product.
        if not torch.isfinite(layers[module].scaled_b().to(target.dtype)).all():
            raise ConfigError(
                f"{file}: {module}.lora_B.weight times the scale {layers[module].scale:g} has values "
                f"that are not finite in {target.dtype}; check lora_alpha, or choose another dtype"
            )
    return layers


def _is_saved(name: str, config: PeftConfig, targets: Mapping[str, LoRATarget]) -> bool:
    """Whether a tensor is part of a last layer in place of the model's."""
    module, _, part = name.removeprefix(_PREFIX).rpartition(".")
    target = targets.get(module) if name.startswith(_PREFIX) else None
    if target is None or not target.is_head or not config.saves(module):
        return False
    return part == "weight" or (part == "bias" and target.has_bias)


def _read_saved(
    file: Path, stored: Any, config: PeftConfig, targets: Mapping[str, LoRATarget]
) -> dict[str, SavedLinear]:
    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        is_there = f"{_PREFIX}{name}" in stored.keys()  # noqa: SIM118 - not a mapping
        return _read(file, stored, f"{_PREFIX}{name}" if is_there else None, name, shape)

    saved: dict[str, SavedLinear] = {}
    for module, target in targets.items():
        if target.is_head and config.saves(module):
            weight = read(f"{module}.weight", (target.out_features, target.in_features))
            bias = read(f"{module}.bias", (target.out_features,)) if target.has_bias else None
            saved[module] = SavedLinear(weight, bias)
    return saved


def _read(file: Path, stored: Any, name: str | None, what: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name is None:
        raise ConfigError(f"{file}: lacks the tensor {what}; fetch the adapter again")
    described = stored.get_slice(name)
    found, dtype = tuple(described.get_shape()), described.get_dtype()
    if found != shape or dtype not in _READABLE:
        raise ConfigError(
            f"{file}: tensor {name!r} is {dtype} of shape {list(found)}, expected shape {list(shape)} of one "
            f"of {', '.join(_READABLE)}; check that adapter and model belong together"
        )
    tensor: torch.Tensor = stored.get_tensor(name)
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"{file}: tensor {name!r} has values that are not finite")
    return tensor


def _digest(layers: Mapping[str, LoRAWeights], saved: Mapping[str, SavedLinear]) -> bytes:
    digest = blake2b(digest_size=16)
    for module in sorted(layers):
        weights = layers[module]
        digest.update(f"{module} {weights.a.dtype} {tuple(weights.a.shape)} {weights.scale!r}".encode())
        for tensor in (weights.a, weights.b):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    for module in sorted(saved):
        for part in (saved[module].weight, saved[module].bias):
            if part is not None:
                digest.update(f"{module} saved {part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
