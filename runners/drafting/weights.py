"""A draft's weights beside those of its target: their names, and what is read again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dodona.oracle.errors import ConfigError
from dodona.runners.drafting.head import DraftHead
from dodona.runners.weights.life import WeightViews

_DRAFT = "draft."
"""Before the names of a draft's tensors, where both models' are meant."""


def of_draft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A draft's tensors by the names that they have beside the target's."""
    return {f"{_DRAFT}{name}": tensor for name, tensor in tensors.items()}


def with_draft(target: WeightViews, draft: WeightViews) -> WeightViews:
    """The weights of both."""
    tied = {f"{_DRAFT}{name}": f"{_DRAFT}{first}" for name, first in draft.tied.items()}
    views = {**target.views, **of_draft(draft.views)}
    quantized = target.quantized | {f"{_DRAFT}{name}" for name in draft.quantized}
    return WeightViews(views, {**target.tied, **tied}, quantized)


def head_views(head: DraftHead) -> WeightViews:
    """A head's own weights by speculators' names, without the drafted tokens, which are part of what it
    is."""
    return WeightViews({name: t for name, t in head.own_tensors().items() if name != "targets"}, {})


def head_tensors(running: Mapping[str, Tensor], head: DraftHead, directory: Path) -> dict[str, Tensor]:
    """By the names of `running`, the own tensors of a head that runs, those of a head that was read again.

    What that one borrows of its target, and the running one has for itself, is the target's tensor, which may
    be written before it is read. Raises ConfigError where the head has other tensors than the running one.
    """
    if not running.keys() >= head.own_tensors().keys():
        raise _another(directory)
    return fitting(running, {**head.state_dict(), "targets": head.targets}, directory)


def fitting(running: Mapping[str, Tensor], found: Mapping[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """What was found of a draft that runs. Raises ConfigError where tensors are missing or have other
    shapes."""
    shapes = {name: tensor.shape for name, tensor in running.items()}
    if shapes != {name: found[name].shape for name in shapes if name in found}:
        raise _another(directory)
    return {name: found[name] for name in shapes}


def overwrite(running: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Write what was found in place."""
    with torch.no_grad():
        for name, tensor in running.items():
            tensor.copy_(found[name])


def _another(directory: Path) -> ConfigError:
    return ConfigError(f"{directory}: other tensors than those of the draft that runs; make a new LLM")
