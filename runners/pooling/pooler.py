"""From a model's output to what a request gets: an embedding, or the classes of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.sentence_transformers import DenseModule
from dodona.oracle.systems.own.pooler import PoolingSettings, check_dense_tensors, check_dimensions
from dodona.runners.pooling.params import PoolingParams
from dodona.runners.safetensors_file import open_safetensors

_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(dim=-1),
}


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer over pooled vectors, in fp32 on the model's device."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str


@dataclass(frozen=True, slots=True)
class Pooler:
    """What the settings say of outputs; `dense` are their layers, read."""

    settings: PoolingSettings
    dense: tuple[Dense, ...] = ()

    def __call__(self, output: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        """fp32. output: hidden states [tokens, size] -> an embedding [size'], or logits [.., classes] ->
        the same shape."""
        settings, output = self.settings, output.float()
        activates = settings.use_activation if params.use_activation is None else params.use_activation
        if settings.task != "embed":
            return _ACTIVATIONS[settings.activation](output) if activates else output
        vector = pool(output, settings.pooling_types)
        for layer in self.dense:
            vector = _ACTIVATIONS[layer.activation](F.linear(vector, layer.weight, layer.bias))
        dimensions = params.dimensions or settings.dimensions
        if dimensions is not None:
            vector = vector[:dimensions]
        return F.normalize(vector, dim=-1) if activates else vector

    def overwrite(self, dense: Sequence[Dense]) -> None:
        """Write the values of other layers of the same shapes into `dense`, in place."""
        for mine, other in zip(self.dense, dense, strict=True):
            mine.weight.copy_(other.weight)
            if mine.bias is not None and other.bias is not None:
                mine.bias.copy_(other.bias)


def pool(hidden: torch.Tensor, types: Sequence[str]) -> torch.Tensor:
    """Hidden states [tokens, size] as one vector [size * len(types)], as Sentence Transformers defines it."""
    return torch.cat([_pool(hidden, kind) for kind in types])


def _pool(hidden: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "CLS":
        return hidden[0]
    if kind == "LAST":
        return hidden[-1]
    if kind == "MAX":
        return hidden.amax(dim=0)
    if kind == "MEAN":
        return hidden.mean(dim=0)
    if kind == "MEAN_SQRT_LEN":
        found: torch.Tensor = hidden.sum(dim=0) / len(hidden) ** 0.5
        return found
    weights = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype)
    return weights @ hidden / weights.sum()


def load_dense(modules: Sequence[DenseModule], device: torch.device) -> tuple[Dense, ...]:
    """Read the weights of Dense modules. Raises ConfigError where one is missing or of another shape."""
    return tuple(_load_dense(module, device) for module in modules)


def _load_dense(module: DenseModule, device: torch.device) -> Dense:
    check_dense_tensors(module)
    with open_safetensors(module.folder / "model.safetensors") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    weight = tensors["linear.weight"].to(device, torch.float32)
    bias = tensors["linear.bias"].to(device, torch.float32) if module.bias else None
    return Dense(weight, bias, module.activation)


def check_width(pooler: Pooler, width: int, file: str) -> None:
    """Raise ConfigError where the settings don't fit outputs of `width` elements."""
    settings = pooler.settings
    if settings.task != "embed":
        if width != len(settings.labels):
            raise ConfigError(
                f"{file}: the model has {width} classes, and id2label names {len(settings.labels)}"
            )
        return
    check_dimensions(settings, width)
