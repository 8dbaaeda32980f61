"""Layers with different numbers of heads on several ranks: tokens are those of transformers, and what does
not divide is refused by the rules with its field."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona.oracle import EngineConfig, UnsupportedConfiguration, select_runner
from dodona.oracle.models.heads import WHOLE_ATTENTION
from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.regions import Region, cover
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.parallel_families import TENSOR_PARALLEL_FAMILIES
from dodona.runners.v1.tensor_parallel import shard_model
from tests.distributed.test_tensor_parallel import NEW_TOKENS, compare, prompts
from tests.distributed.thread_runners import generate_on_ranks
from tests.support.every_family import architecture, model_types, tiny_config
from tests.support.tiny_models import make_model

TP, PP = "tensor_parallel_size", "pipeline_parallel_size"
OF_SIX = {"moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("family", "sizes", "heads"),
    [
        ("mimo", {TP: 2}, [1, 2, 2]),
        ("mimo", {TP: 4}, [1, 1, 1]),
        ("mimo", {TP: 4, PP: 2}, None),
        ("gemma4-global", {TP: 2}, [1] * 6),
        ("gemma4-global", {TP: 4, "enable_lora": True, "max_lora_rank": 8}, [1] * 6),
        ("laguna", {TP: 4}, [1, 1]),
        ("olmo2", {TP: 3}, [2, 2]),
    ],
    ids=str,
)
def test_tokens(tiny_models, reference, family: str, sizes: dict[str, Any], heads: list[int] | None) -> None:
    path = tiny_models.path(family)
    found, drivers = generate_on_ranks(
        path,
        prompts(),
        NEW_TOKENS,
        driver={"budget": 7, "preempt_every": 5, "prefix_caching": True},
        rounds=2,
        **sizes,
    )
    compare(path, reference, found, prompts(), NEW_TOKENS)
    if heads is not None:
        for driver in drivers:
            spec = driver.runner.get_kv_cache_spec()
            assert [layer.num_kv_heads for layer in spec.layers] == heads


@pytest.mark.parametrize(
    ("family", "changes", "ranks", "uneven"),
    [
        ("mimo", {}, 4, None),
        ("mimo", {"num_attention_heads": 12, **OF_SIX}, 6, "num_key_value_heads of sliding layers=4"),
        (
            "mimo",
            {"num_attention_heads": 12, "layer_types": ["full_attention"] * 3, **OF_SIX},
            6,
            None,  # no layer slides
        ),
        ("mimo", {"num_attention_heads": 12, "num_key_value_heads": 3}, 4, "num_key_value_heads=3"),
        ("gemma4-global", {}, 4, None),
        (
            "gemma4-global",
            {"num_attention_heads": 12, "num_global_key_value_heads": 3},
            4,
            "num_global_key_value_heads=3",
        ),
        (
            "gemma4-global",
            {"num_attention_heads": 12, "num_global_key_value_heads": 3, "attention_k_eq_v": False},
            4,
            None,  # full layers have as many as others
        ),
        (
            "gemma4-global",
            {
                "num_attention_heads": 12,
                "per_layer_config": {layer: {"num_key_value_heads": 3} for layer in ("1", "3", "5")},
            },
            4,
            "per_layer_config.1.num_key_value_heads=3",
        ),
        ("laguna", {}, 4, None),
        ("laguna", {"num_attention_heads_per_layer": [8, 6]}, 4, "num_attention_heads_per_layer=6"),
        ("laguna", {"num_attention_heads": 6}, 4, None),  # no layer has it
        ("olmo2", {}, 3, None),  # attention stays whole
        ("llama", {}, 3, "num_attention_heads=4"),
    ],
)
def test_what_does_not_divide_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], ranks: int, uneven: str | None
) -> None:
    """By the rules, which name the field, and by the model's split."""
    with torch.device("meta"):
        model = make_model(family, **changes)
    config = model.config
    # As hubs have it: with the fields that layers' own configurations are made of.
    raw = {**config.to_dict(), "architectures": [type(model).__name__]}
    if family == "gemma4-global" and "per_layer_config" not in changes:
        raw.pop("per_layer_config")
        raw |= {"num_global_key_value_heads": 1, "global_head_dim": 12, **changes}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    flat = {TP: ranks, "device": "cpu", "load_format": "dummy", "skip_tokenizer_init": True}

    def select() -> None:
        select_runner(EngineConfig.from_flat(str(tmp_path), **flat))

    def split() -> None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        shard_model(model, SimpleNamespace(size=ranks, rank=1))

    if uneven is None:
        select()
        split()
        return
    with pytest.raises(UnsupportedConfiguration) as refusal:
        select()
    assert f"{uneven}, which does not divide by {ranks}" in str(refusal.value)
    with pytest.raises(UnsupportedConfiguration, match=f"heads: {uneven.rpartition('=')[2]} does not divide"):
        split()


@pytest.mark.parametrize(
    "model_type", [name for name in model_types() if architecture(name) in TENSOR_PARALLEL_FAMILIES]
)
def test_parts_of_ranks_are_the_whole_models_heads(model_type: str) -> None:
    """Of every type that several ranks serve: a share is found by the module that attends, if it is split."""

    def model() -> Any:
        return AutoModelForCausalLM.from_config(tiny_config(model_type), attn_implementation="eager").eval()

    whole, split = PackedModel(model()), model()
    shares = shard_model(split, SimpleNamespace(size=4, rank=1, all_reduce=lambda output: output))
    found = PackedModel(split)
    parts = [shares.kv_parts.get(name, 1) for name in found.layer_names]
    heads = [layer.num_kv_heads * count for layer, count in zip(found.layers, parts, strict=True)]
    assert heads == [layer.num_kv_heads for layer in whole.layers]
    # Its heads have to divide, or not.
    assert any(name in shares.kv_parts for name in found.layer_names) == (model_type not in WHOLE_ATTENTION)


def test_parts_of_blocks() -> None:
    layers = [LayerKVSpec(2, 8, 8), LayerKVSpec(4, 8, 8)]
    quarters = [Region(0, 2, share, 4) for share in range(4)]
    assert [[list(part.heads(layer)) for layer in layers] for part in quarters] == [
        [[0], [0]], [[0], [1]], [[1], [2]], [[1], [3]],
    ]  # fmt: skip
    assert all(part.is_of(layers) for part in quarters)
    assert {part.elements(layers, 3) for part in quarters} == {3 * 2 * 16}
    halves = [Region(0, 2, share, 2) for share in range(2)]
    assert cover(quarters[2], halves) == [halves[1]]
    assert set(cover(halves[0], quarters) or ()) == set(quarters[:2])
    # A name may say anything: what it has memory taken for stays small.
    assert not any(Region(0, 2, 0, shares).is_of(layers) for shares in (3, 8, 4 * 10**8))
    assert not Region(0, 1, 0, 4).is_of(layers)
