"""Fills weights from a directory's safetensors, or with random numbers.

Everything is checked before the first tensor is copied, so that a refused reload leaves the old weights as
they were.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.weight_files import weight_files
from dodona.runners.quantization.formats import TensorSpec
from dodona.runners.safetensors_file import open_safetensors
from dodona.runners.v2.loading.quantized import Place, fill_parts, readable_types, stored_specs
from dodona.runners.v2.models.projections import Parts
from dodona.runners.v2.models.shares import TensorShare

NO_PARTS: Parts = {}
Shares = Mapping[str, TensorShare]
"""By tensor name, what is read of it; others are read whole."""
NO_SHARES: Shares = {}

_HEAD_AND_EMBEDDING = frozenset({"lm_head.weight", "model.embed_tokens.weight"})
_HEADS = frozenset({"lm_head.weight", "score.weight", "score.bias"})
"""Last layers: a pooling model's checkpoint may have those of another task."""
_READABLE = ("F32", "F16", "BF16")
# Old checkpoints store the rotary frequencies; they follow from config.json.
_DERIVED = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def load_safetensors(
    path: Path,
    views: Mapping[str, torch.Tensor],
    parts: Parts = NO_PARTS,
    *,
    tied: bool,
    shares: Shares = NO_SHARES,
) -> None:
    """Copy a checkpoint's tensors into `views`, and what it stores of quantized layers into `parts`.

    Args:
        path: model directory; one file, or shards with an index.
        views: tensor name → where it goes; its shape is the one expected. Any device, any float dtype (values
            are cast).
        parts: quantized layer's name → where it goes.
        tied: whether the head shares the embedding's memory: a stored `lm_head.weight` must be equal to it.
        shares: by name, the part of a tensor that its view holds; no other part is read.

    Raises ConfigError that names file and tensor: missing, unexpected, stored twice, of another shape, not
        float.
    """
    if tied and has_own_head(path):
        raise ConfigError(
            f"{path}: lm_head.weight has other values than model.embed_tokens.weight, and the running model "
            "has one tensor for both; load it as a new model"
        )
    _fill(path, views, parts, unread={"lm_head.weight"} if tied else (), shares=shares)


def load_pooling_safetensors(path: Path, views: Mapping[str, torch.Tensor], parts: Parts = NO_PARTS) -> None:
    """`load_safetensors` of a pooling model: last layers that are not in `views` are left out, and where the
    checkpoint is of the model without a last layer, its names don't begin with "model."."""
    stored = {name for file in weight_files(path) for name in _names(file)}
    if "embed_tokens.weight" in stored:
        views = {name.removeprefix("model."): view for name, view in views.items()}
        parts = {name.removeprefix("model."): part for name, part in parts.items()}
    _fill(path, views, parts, unread=_HEADS - views.keys())


def _fill(
    path: Path,
    views: Mapping[str, torch.Tensor],
    parts: Parts,
    *,
    unread: Collection[str],
    shares: Shares = NO_SHARES,
) -> None:
    """Copy the tensors, but for those with the names `unread`."""
    specs = stored_specs(parts)
    shapes = {name: _whole_shape(view, shares.get(name)) for name, view in views.items()}
    places = _plan(path, shapes, specs, unread)
    with ExitStack() as stack:
        files = {file: stack.enter_context(open_safetensors(file)) for file in sorted(set(places.values()))}
        for name in places.keys() & views.keys():
            file, view, share = files[places[name]], views[name], shares.get(name)
            if share is None:
                view.copy_(file.get_tensor(name))
            else:
                view.copy_(file.get_slice(name)[share.place(view.shape)])

        def read(name: str, place: Place | None) -> torch.Tensor:
            file = files[places[name]]
            found: torch.Tensor = file.get_tensor(name) if place is None else file.get_slice(name)[place]
            return found

        fill_parts(parts, read)


def has_own_head(path: Path) -> bool:
    """Whether a checkpoint stores an output head with other values than its embedding.

    Tools for fine-tuning write such files although config.json ties the two; transformers then uses the head.
    Raises ConfigError where a file can't be read.
    """
    places: dict[str, Path] = {}
    for file in weight_files(path):
        with open_safetensors(file) as stored:
            places.update(dict.fromkeys(_HEAD_AND_EMBEDDING & set(stored.keys()), file))
    if len(places) < 2:
        return False  # nothing to compare, and no tensor is read
    with ExitStack() as stack:
        both = [stack.enter_context(open_safetensors(file)).get_tensor(name) for name, file in places.items()]
        # Inside `on_meta` large tensors have no values to compare.
        return not any(tensor.is_meta for tensor in both) and not torch.equal(*both)


def fill_randomly(views: Mapping[str, torch.Tensor], *, seed: int, shares: Shares = NO_SHARES) -> None:
    """Random weights of the size that models are initialised with: norms near 1, the rest N(0, 0.02²).

    Ranks with `shares` of a model have together the weights that one rank would have.
    """
    device = next(iter(views.values())).device
    generator = torch.Generator(device=device).manual_seed(seed)
    for name in sorted(views):
        view = views[name]
        share = shares.get(name)
        if share is None:
            view.normal_(0.0, 0.02, generator=generator)
        else:
            whole = view.new_empty(share.whole(view.shape)).normal_(0.0, 0.02, generator=generator)
            view.copy_(whole[share.place(view.shape)])
        if name.endswith("norm.weight"):
            view.add_(1.0)


def _plan(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    specs: Mapping[str, TensorSpec],
    unread: Collection[str],
) -> dict[str, Path]:
    """The file of each tensor, in `shapes` or else in `specs`. Raises ConfigError where one is not as it must
    be."""
    found: dict[str, Path] = {}
    files = weight_files(path)
    for file in files:
        with open_safetensors(file) as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if _DERIVED.fullmatch(name) or name in unread:
                    continue
                if name not in shapes and name not in specs:
                    raise ConfigError(
                        f"{file}: unexpected tensor {name!r}: config.json describes a model without it; "
                        "check that weights and config.json belong together"
                    )
                if name in found:
                    raise ConfigError(
                        f"{file}: tensor {name!r} is also in {found[name].name}; keep one of them"
                    )
                if name in shapes:
                    _check_tensor(file, name, stored.get_slice(name), shapes[name], _READABLE)
                else:
                    spec = specs[name]
                    _check_tensor(file, name, stored.get_slice(name), spec.shape, readable_types(spec))
                found[name] = file
    expected = shapes.keys() | specs.keys()
    missing = sorted(expected - found.keys())
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(expected)} tensors are in none of "
            f"{', '.join(f.name for f in files)}: {_some(missing)}; fetch the model again"
        )
    return found


def _whole_shape(view: torch.Tensor, share: TensorShare | None) -> tuple[int, ...]:
    return tuple(view.shape) if share is None else share.whole(view.shape)


def _names(file: Path) -> set[str]:
    with open_safetensors(file) as stored:
        return set(stored.keys())


def _check_tensor(
    file: Path, name: str, stored: Any, expected: tuple[int, ...], readable: tuple[str, ...]
) -> None:
    shape = tuple(stored.get_shape())
    if shape != tuple(expected) and {shape, tuple(expected)} != {(), (1,)}:
        raise ConfigError(
            f"{file}: tensor {name!r} has shape {list(shape)}, but config.json makes it {list(expected)}; "
            "check that weights and config.json belong together"
        )
    if stored.get_dtype() not in readable:
        raise ConfigError(
            f"{file}: tensor {name!r} has type {stored.get_dtype()}, expected one of {', '.join(readable)}"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
