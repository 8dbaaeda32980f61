"""What rules say of widths that don't divide among ranks, against what becomes of the model there."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.parallel import uneven_size
from dodona.runners.v1.tensor_parallel import shard_model
from tests.support.every_family import architecture, tiny_config

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


def outcomes(model_type: str, field: str | None, whole_experts: bool) -> tuple[FactValue, bool]:
    """The size that rules refuse, and whether a rank gets its share, of a tiny model with a width that does
    not divide among the ranks."""
    config = tiny_config(model_type)
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
