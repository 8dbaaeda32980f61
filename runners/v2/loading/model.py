"""A model with its weights in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import QuantizationConfig
from dodona.oracle.models.stored_tensors import stored_tensors
from dodona.oracle.systems.own.pooler import PoolingSettings
from dodona.runners.distributed.mesh import Alone, Group
from dodona.runners.limits import Limits
from dodona.runners.v2.exchange import make_exchange
from dodona.runners.v2.loading.loader import (
    fill_randomly,
    has_own_head,
    load_pooling_safetensors,
    load_safetensors,
)
from dodona.runners.v2.loading.quantized import fill_parts_randomly
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.v2.models.hidden_states import HiddenStates
from dodona.runners.v2.models.registry import (
    checkpoint_shares,
    checkpoint_views,
    make_spec,
    quantized_parts,
)
from dodona.runners.v2.models.spec import share_spec
from dodona.runners.v2.models.weights import allocate_weights
from dodona.runners.weights.life import WeightViews


def read_model(
    info: ModelInfo,
    limits: Limits,
    directory: Path | None,
    *,
    seed: int,
    quantization: QuantizationConfig | None = None,
    pooling: PoolingSettings | None = None,
    seen: HiddenStates | None = None,
    group: Group | None = None,
) -> DenseModel:
    """The model on the device of `limits`, its weights from a directory's safetensors or (None) random.

    pooling: how it is served for pooling; None where it generates.
    group: the ranks that split each layer, of which this one has its share; None: it is alone.

    Raises ConfigError where config.json or the weights are not as they must be.
    """
    if quantization is not None and directory is not None:
        quantization = quantization.with_names_of(stored_tensors(directory))
    spec = make_spec(info, limits, quantization, pooling)
    if spec.has_lm_head and spec.tie_word_embeddings and directory is not None and has_own_head(directory):
        spec = replace(spec, tie_word_embeddings=False)
    group = group or Alone()
    spec = share_spec(spec, group.rank, group.size)
    device = torch.device(limits.device)
    exchange = make_exchange(group, device) if group.size > 1 else None
    model = DenseModel(spec, allocate_weights(spec, device), seen=seen, exchange=exchange)
    read_weights(model, directory, seed=seed)
    return model


def weight_views(model: DenseModel) -> WeightViews:
    """The model's weights by the names of its checkpoint; without those of quantized layers."""
    spec = model.spec
    is_tied = spec.has_lm_head and spec.tie_word_embeddings
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if is_tied else {}
    parts = quantized_parts(spec, model.weights)
    return WeightViews(checkpoint_views(spec, model.weights), tied, frozenset(parts))


def read_weights(model: DenseModel, path: Path | None, *, seed: int) -> None:
    """Fill the weights from a directory's safetensors, or (None) with random numbers; in place.

    Raises ConfigError, before the first write, that names the tensor which does not fit.
    """
    spec = model.spec
    views, parts = checkpoint_views(spec, model.weights), quantized_parts(spec, model.weights)
    shares = checkpoint_shares(spec)
    if path is None and model.device.type == "meta":
        return  # inside `on_meta`: there is nothing to fill
    if path is None:
        fill_randomly(views, seed=seed, shares=shares)
        fill_parts_randomly(parts, seed=seed)
    elif spec.has_lm_head:
        load_safetensors(path, views, parts, tied=spec.tie_word_embeddings, shares=shares)
    else:
        load_pooling_safetensors(path, views, parts)
