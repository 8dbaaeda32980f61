"""Fills weights from a directory's safetensors, or with random numbers.

Everything is checked before the first tensor is copied, so that a refused reload leaves the old weights as
they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.weight_files import weight_files

_READABLE = ("F32", "F16", "BF16")
# Old checkpoints store the rotary frequencies; they follow from config.json.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def load_safetensors(path: Path, views: Mapping[str, torch.Tensor], *, tied: bool) -> None:
    """Copy a checkpoint's tensors into `views`.

    Args:
        path: model directory; one file, or shards with an index.
        views: tensor name → where it goes; its shape is the one expected. Any device, any float dtype (values
            are cast).
        tied: whether a stored `lm_head.weight` is a copy of the embedding, to be left out.

    Raises ConfigError that names file and tensor: missing, unexpected, stored twice, of another shape, not
        float.
    """
    plan = _plan(path, views, tied)
    for file, names in plan.items():
        with _open(file) as stored:
            for name in names:
                views[name].copy_(stored.get_tensor(name))


def fill_randomly(views: Mapping[str, torch.Tensor], *, seed: int) -> None:
    """Random weights of the size that models are initialised with: norms near 1, the rest N(0, 0.02²)."""
    device = next(iter(views.values())).device
    generator = torch.Generator(device=device).manual_seed(seed)
    for name in sorted(views):
        view = views[name]
        view.normal_(0.0, 0.02, generator=generator)
        if name.endswith("norm.weight"):
            view.add_(1.0)


def _plan(path: Path, views: Mapping[str, torch.Tensor], tied: bool) -> dict[Path, list[str]]:
    plan: dict[Path, list[str]] = {}
    found: dict[str, Path] = {}
    for file in weight_files(path):
        plan[file] = []
        with _open(file) as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if _DERIVED.fullmatch(name) or (tied and name == "lm_head.weight"):
                    continue
                if name not in views:
                    raise ConfigError(
                        f"{file}: unexpected tensor {name!r}: config.json describes a model without it; "
                        "check that weights and config.json belong together"
                    )
                if name in found:
                    raise ConfigError(
                        f"{file}: tensor {name!r} is also in {found[name].name}; keep one of them"
                    )
                _check_tensor(file, name, stored.get_slice(name), views[name])
                found[name] = file
                plan[file].append(name)
    missing = sorted(views.keys() - found.keys())
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(views)} tensors are in none of "
            f"{', '.join(f.name for f in plan)}: {_some(missing)}; fetch the model again"
        )
    return plan


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as safetensors: {error}; fetch the model again") from error


def _check_tensor(file: Path, name: str, stored: Any, view: torch.Tensor) -> None:
    shape = tuple(stored.get_shape())
    if shape != tuple(view.shape):
        raise ConfigError(
            f"{file}: tensor {name!r} has shape {list(shape)}, but config.json makes it {list(view.shape)}; "
            "check that weights and config.json belong together"
        )
    if stored.get_dtype() not in _READABLE:
        raise ConfigError(
            f"{file}: tensor {name!r} has type {stored.get_dtype()}, expected one of {', '.join(_READABLE)}"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
