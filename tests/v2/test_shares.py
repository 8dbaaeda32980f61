"""What a tensor-parallel rank holds of V2's weights: together the ranks hold the checkpoint, and none reads
more than its part of a tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.limits import resolve_limits
from dodona.runners.v2.loading import loader
from dodona.runners.v2.loading.loader import fill_randomly, load_safetensors
from dodona.runners.v2.models.registry import checkpoint_shares, checkpoint_views, make_spec
from dodona.runners.v2.models.spec import share_spec
from dodona.runners.v2.models.weights import allocate_weights

SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}


def spec_of(path):
    config, model = EngineConfig.from_flat(str(path), device="cpu"), ModelInfo.load(path)
    return make_spec(model, resolve_limits(config, model))


def views_of(spec):
    weights = allocate_weights(spec, torch.device("cpu"))
    for view in (views := checkpoint_views(spec, weights)).values():
        view.fill_(float("nan"))
    return weights, views


def put_together(name, parts, kv_heads):
    """The whole tensor of the ranks' parts."""
    if name.endswith(("q_proj.weight", "gate_proj.weight", "up_proj.weight")):
        return torch.cat(parts)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.cat(parts, dim=1)
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        same = max(1, len(parts) // kv_heads)  # neighbours that hold the same head
        assert all(torch.equal(part, parts[i - i % same]) for i, part in enumerate(parts))
        return torch.cat(parts[::same])
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral"])
def test_ranks_hold_the_checkpoint_together(tiny_models, family, ranks):
    path = tiny_models.path(family, **SIZES)
    whole, of_ranks = spec_of(path), []
    for rank in range(ranks):
        spec = share_spec(whole, rank, ranks)
        _, views = views_of(spec)
        load_safetensors(path, views, tied=False, shares=checkpoint_shares(spec))
        of_ranks.append(views)
    stored = load_file(path / "model.safetensors")
    assert stored.keys() == of_ranks[0].keys()
    for name, tensor in stored.items():
        parts = [views[name] for views in of_ranks]
        assert torch.equal(put_together(name, parts, 2), tensor), name
    split = [name for name, tensor in stored.items() if of_ranks[0][name].shape != tensor.shape]
    assert len(split) == 7 * whole.num_layers


def test_random_weights_are_those_of_one_rank(tiny_models):
    path = tiny_models.path("qwen3", **SIZES)
    whole, of_ranks = spec_of(path), []
    for rank in range(4):
        spec = share_spec(whole, rank, 4)
        _, views = views_of(spec)
        fill_randomly(views, seed=5, shares=checkpoint_shares(spec))
        of_ranks.append(views)
    _, alone = views_of(whole)
    fill_randomly(alone, seed=5)
    for name, tensor in alone.items():
        assert torch.equal(put_together(name, [views[name] for views in of_ranks], 2), tensor), name


def test_no_rank_reads_a_split_tensor_whole(tiny_models, monkeypatch):
    path = tiny_models.path("llama", **SIZES)
    spec = share_spec(spec_of(path), 1, 2)
    read, opened = [], loader.open_safetensors

    class Spy:
        def __init__(self, context):
            self._context = context

        def __enter__(self):
            self._file = self._context.__enter__()
            return self

        def __exit__(self, *error):
            return self._context.__exit__(*error)

        def get_tensor(self, name):
            read.append(name)
            return self._file.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self._file, name)

    monkeypatch.setattr(loader, "open_safetensors", lambda file: Spy(opened(file)))
    shares = checkpoint_shares(spec)
    _, views = views_of(spec)
    load_safetensors(path, views, tied=False, shares=shares)
    assert set(read) == views.keys() - shares.keys()
    assert all(view.isfinite().all() for view in views.values())


def test_a_tensor_of_another_shape_is_refused_by_the_whole_shape(tiny_models):
    path = tiny_models.path("llama", **SIZES)
    spec = share_spec(replace(spec_of(path), intermediate_size=64), 0, 2)
    _, views = views_of(spec)
    with pytest.raises(ConfigError, match=r"has shape \[32, 48\], but config.json makes it \[32, 64\]"):
        load_safetensors(path, views, tied=False, shares=checkpoint_shares(spec))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_q_heads": 6, "num_kv_heads": 4}, "query heads: 6 does not divide by 4"),
        ({"num_kv_heads": 6, "num_q_heads": 12}, "KV heads: 6 does not divide by 4"),
        ({"num_kv_heads": 3, "num_q_heads": 12}, "tensor_parallel_size: 4 does not divide by 3"),
        ({"intermediate_size": 50}, "intermediate_size: 50 does not divide by 4"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_by_name(tiny_models, changes, words):
    spec = replace(spec_of(tiny_models.path("llama", **SIZES)), **changes)
    with pytest.raises(UnsupportedConfiguration, match=words):
        share_spec(spec, 0, 4)
