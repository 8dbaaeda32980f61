"""What rules say of widths that don't divide among ranks, against what becomes of the model there."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.widths import NO_SPLIT_LAYERS
from dodona.oracle.select import select_runner
from dodona.oracle.systems.own.parallel import uneven_size
from dodona.runners.v1.parallel_families import EXPERT_PARALLEL_FAMILIES
from dodona.runners.v1.tensor_parallel import SPLIT_STYLES, _pattern, shard_model
from tests.distributed.test_tensor_parallel import NEW_TOKENS, compare, prompts
from tests.distributed.thread_runners import generate_on_ranks
from tests.support.every_family import architecture, model_types, tiny_config
from tests.support.tiny_models import TinyModels

RANKS = 4
WIDTHS = {
    "llama": ("intermediate_size",),
    "gemma3n_text": ("intermediate_size",),
    "mixtral": ("intermediate_size",),
    "aria_text": ("intermediate_size",),
    "deepseek_v3": ("intermediate_size", "moe_intermediate_size"),
    "dots1": ("intermediate_size", "moe_intermediate_size"),
    "ernie4_5_moe": ("intermediate_size", "moe_intermediate_size"),
    "kolibri1": ("moe_intermediate_size", "shared_expert_intermediate_size"),
    "longcat_flash": ("ffn_hidden_size", "expert_ffn_hidden_size"),
    "qwen3_5_moe": ("moe_intermediate_size", "shared_expert_intermediate_size"),
    "qwen3_moe": ("moe_intermediate_size",),
    "solar_open": ("moe_intermediate_size",),
}
"""By type, the fields of its widths; one shared expert or two; one width for all layers, or one each."""


SPLIT_LAYERS = {
    **{name: {"mlp_layer_types": ["dense", "sparse"]} for name in ("cohere2_moe", "mellum")},
    **{name: {"mlp_only_layers": [0]} for name in ("qwen2_moe", "qwen3_moe", "qwen3_next")},
}
"""By type, what gives a model a dense layer of `intermediate_size`, if only some have one."""


def outcomes(
    model_type: str, field: str | None, whole_experts: bool, **changes: Any
) -> tuple[FactValue, bool]:
    """The size that rules refuse, and whether a rank gets its share, of a tiny model with a width that does
    not divide among the ranks."""
    config = tiny_config(model_type, **changes)
    if field is not None:
        text = config.get_text_config(decoder=True)
        value = getattr(text, field)
        # The last of several is the larger one, and still divides.
        wrong = (
            [value[0] + 2, *(each + RANKS for each in value[1:])] if isinstance(value, list) else value + 2
        )
        setattr(text, field, wrong)
    raw = {**config.to_dict(), "architectures": [architecture(model_type)], "model_type": model_type}
    info = ModelInfo.from_mapping(json.loads(json.dumps(raw, default=str)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    try:
        shard_model(model, SimpleNamespace(size=RANKS, rank=1), whole_experts=whole_experts)
        has_share = True
    except UnsupportedConfiguration as error:
        has_share = f"does not divide by {RANKS} ranks" not in str(error)
    flat = {"tensor_parallel_size": RANKS, "enable_expert_parallel": whole_experts}
    return uneven_size(EngineConfig.from_flat("model", **flat), info), has_share


@pytest.mark.parametrize("model_type", WIDTHS)
def test_each_width_has_to_divide(model_type: str) -> None:
    assert outcomes(model_type, None, False) == (None, True)
    for field in WIDTHS[model_type]:
        uneven, has_share = outcomes(model_type, field, False)
        assert field in str(uneven)
        assert not has_share


@pytest.mark.parametrize(
    ("model_type", "field", "even"),
    [
        ("qwen3_5_moe", "moe_intermediate_size", True),
        ("qwen3_5_moe", "shared_expert_intermediate_size", False),
        ("kolibri1", "moe_intermediate_size", True),
        ("deepseek_v3", "moe_intermediate_size", False),  # one shared expert of that width
        ("ernie4_5_moe", "moe_intermediate_size", True),  # two
    ],
)
def test_whole_experts_have_any_width(model_type: str, field: str, even: bool) -> None:
    uneven, has_share = outcomes(model_type, field, True)
    assert (uneven is None, has_share) == (even, even)
    assert even or field in str(uneven)


def of_whole_experts() -> list[str]:
    """The types with `intermediate_size` whose experts are spread over ranks."""
    return [
        model_type
        for model_type in model_types()
        if architecture(model_type) in EXPERT_PARALLEL_FAMILIES
        and hasattr(tiny_config(model_type).get_text_config(decoder=True), "intermediate_size")
    ]


@pytest.mark.parametrize("model_type", of_whole_experts())
def test_layers_beside_whole_experts(model_type: str) -> None:
    """What rules say of `intermediate_size` is what comes of it, with dense layers and without."""
    assert outcomes(model_type, None, True) == (None, True)
    uneven, has_share = outcomes(model_type, "intermediate_size", True)
    assert (uneven is None) == has_share
    if model_type in NO_SPLIT_LAYERS:
        assert has_share
    if model_type in SPLIT_LAYERS:
        uneven, has_share = outcomes(model_type, "intermediate_size", True, **SPLIT_LAYERS[model_type])
        assert (uneven, has_share) == ("intermediate_size=50", False)


def test_all_layers_that_a_plan_splits_are_tried() -> None:
    """A pattern that no layer has could be one of dense layers that only some models have."""
    for model_type in sorted(set(NO_SPLIT_LAYERS) & set(of_whole_experts())):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                tiny_config(model_type, **SPLIT_LAYERS.get(model_type, {}))
            )
        names = {_pattern(name) for name, _ in (*model.named_modules(), *model.named_parameters())}
        split = {pattern for pattern, style in model.tp_plan.items() if style in SPLIT_STYLES}
        assert all(".experts" in pattern for pattern in split - names), model_type


@pytest.mark.parametrize("step", [{"decoder_sparse_step": 2}, {"mlp_only_layers": [1]}])
def test_fields_that_give_dense_layers(step: dict[str, Any]) -> None:
    raw = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "intermediate_size": 50, **step,
    }  # fmt: skip
    config = EngineConfig.from_flat("model", tensor_parallel_size=4, enable_expert_parallel=True)
    assert uneven_size(config, ModelInfo.from_mapping(raw)) == "intermediate_size=50"
    plain = {key: value for key, value in raw.items() if key not in step}
    assert uneven_size(config, ModelInfo.from_mapping(plain)) is None


@pytest.mark.parametrize(
    ("family", "uneven"), [("mixtral", "intermediate_size=52"), ("qwen3-moe", "moe_intermediate_size=16")]
)
def test_whole_experts_of_a_width_that_does_not_divide_run(
    tiny_models: TinyModels, reference: Any, family: str, uneven: str
) -> None:
    experts = "num_local_experts" if family == "mixtral" else "num_experts"
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
    path = tiny_models.path(family, intermediate_size=52, **heads, **{experts: 6})
    split = {"tensor_parallel_size": 3}
    whole = {**split, "enable_expert_parallel": True}
    machine = {"device": "cpu", "skip_tokenizer_init": True}
    assert select_runner(EngineConfig.from_flat(str(path), **whole, **machine)).runner == "v1"
    with pytest.raises(UnsupportedConfiguration, match=f"{uneven}, which does not divide by 3 "):
        select_runner(EngineConfig.from_flat(str(path), **split, **machine))
    found, _ = generate_on_ranks(path, prompts(), NEW_TOKENS, driver={"budget": 7}, **whole)
    compare(path, reference, found, prompts(), NEW_TOKENS)


def test_quantized_experts_stay_whole() -> None:
    raw = {
        "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 18, "shared_expert_intermediate_size": 32,
    }  # fmt: skip
    info = ModelInfo.from_mapping(raw)
    sizes = {"tensor_parallel_size": 4}
    uneven = uneven_size(EngineConfig.from_flat("model", **sizes), info)
    assert uneven == "moe_intermediate_size=18"
    assert uneven_size(EngineConfig.from_flat("model", **sizes, quantization="int8"), info) is None


def test_a_width_that_nothing_tells_is_unknown() -> None:
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 1, "hidden_size": 32}
    for more in ({}, {"num_experts": 4}, {"num_experts": 4, "shared_expert_intermediate_size": 16}):
        info = ModelInfo.from_mapping({"architectures": ["XForCausalLM"], "model_type": "x", **sizes, **more})
        assert uneven_size(EngineConfig.from_flat("model", tensor_parallel_size=2), info) is UNKNOWN
