"""The registry of facts: complete, typed, documented; and the facts that are more than a field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactValue, Unknown
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.machine.packages import PACKAGES
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.facts import FACTS, derive_facts

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
}
CPU = Environment(has_triton=False, platform="cpu")
TYPES = {"bool": bool, "int": int, "str": str, "list": tuple}


def facts(
    model: dict[str, Any] | None = LLAMA, environment: Environment | None = None, **sections: Any
) -> dict[str, FactValue]:
    sections.setdefault("model_config", {"model": "m"})
    info = None if model is None else ModelInfo.from_mapping(model)
    return derive_facts(EngineConfig.from_mapping(sections), info, environment or assumed_gpu())


def check(name: str, value: FactValue) -> None:
    spec = FACTS[name]
    if isinstance(value, Unknown):
        return
    if value is None:
        assert spec.nullable, name
        return
    assert type(value) is TYPES[spec.type], (name, value)
    if spec.domain is not None:
        assert set(value if isinstance(value, tuple) else [value]) <= set(spec.domain), (name, value)
    if isinstance(value, int) and not isinstance(value, bool):
        low = -MAX_INT if spec.minimum is None else spec.minimum
        assert low <= value <= MAX_INT, (name, value)


def test_the_registry_is_in_order() -> None:
    for name, spec in FACTS.items():
        assert spec.name == name
        assert spec.doc.endswith("."), name
        assert spec.domain is None or spec.type in ("str", "list"), name
        assert (spec.minimum is None) or spec.type == "int", name


sizes = st.integers(1, 2**60)
sections = st.fixed_dictionaries(
    {
        "parallel_config": st.fixed_dictionaries({}, optional={"tensor_parallel_size": sizes}),
        "cache_config": st.fixed_dictionaries(
            {}, optional={"kv_offloading_size": st.none() | st.floats(0, 4)}
        ),
        "speculative_config": st.none() | st.fixed_dictionaries({}, optional={"method": st.just("eagle3")}),
        "lora_config": st.none() | st.just({}),
        "kv_transfer_config": st.none() | st.fixed_dictionaries({}, optional={"kv_role": st.just("kv_both")}),
    }
)
models = st.none() | st.fixed_dictionaries(
    {"architectures": st.lists(st.sampled_from(["LlamaForCausalLM", "BertModel"]), min_size=1)},
    optional={
        "model_type": st.sampled_from(["llama", "mamba", "t5", "nothing_known", "gemma3"]),
        "hidden_size": st.none() | st.integers(1, 2**31),
        "num_attention_heads": st.none() | st.integers(1, 64),
        "num_key_value_heads": st.none() | st.integers(1, 64),
        "layer_types": st.lists(st.sampled_from(["full_attention", "mamba", "sliding_attention", "odd"])),
        "logit_scale": st.sampled_from([None, 1.0, 2.0]),
        "dtype": st.sampled_from(["bfloat16", "float64"]),
        "sliding_window": st.none() | st.integers(0, 9),
        "rope_scaling": st.none() | st.just({"type": "yarn"}),
    },
)
environments = st.sampled_from([CPU, assumed_gpu(), assumed_gpu("v1"), Environment(False, "rocm")])


@given(sections, models, environments)
def test_every_fact_fits_its_specification(
    chosen: dict[str, Any], model: dict[str, Any] | None, env: Environment
) -> None:
    found = facts(model, env, **chosen)
    assert list(found) == list(FACTS)
    for name, value in found.items():
        check(name, value)
    for name, spec in FACTS.items():
        if spec.source == "environment" and name.removeprefix("environment.") not in PACKAGES:
            assert found[name] is not UNKNOWN


def test_without_a_model_its_facts_are_unknown() -> None:
    found = facts(None)
    given = ("model_config.quantization", "model_config.dtype", "parallel_config.uneven_size")
    given += ("parallel_config.fills_stages", "parallel_config.quantized_share_fault")
    given += ("pooler_config.is_unused", "speculative_config.fault")
    for name, spec in FACTS.items():
        if spec.source == "model" and name not in given:
            assert found[name] is UNKNOWN, name
    given_by_hand = facts(
        None, model_config={"model": "m", "quantization": "FP8", "dtype": "float16", "runner": "pooling"}
    )
    assert given_by_hand["model_config.quantization"] == "fp8"
    assert given_by_hand["model_config.dtype"] == "float16"
    assert given_by_hand["model_config.runner_type"] == "pooling"


@pytest.mark.parametrize(
    ("chosen", "active", "connector"),
    [
        ({}, False, None),
        ({"kv_transfer_config": {}}, False, None),
        ({"kv_transfer_config": {"kv_role": "kv_both"}}, False, None),
        ({"kv_transfer_config": {"kv_connector": "X"}}, False, "X"),
        ({"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_consumer"}}, True, "X"),
        ({"cache_config": {"kv_offloading_size": 0.0}}, False, None),
        ({"cache_config": {"kv_offloading_size": 0.5}}, True, "OffloadingConnector"),
        (
            {"cache_config": {"kv_offloading_size": 2, "kv_offloading_backend": "lmcache"}},
            True,
            "LMCacheConnectorV1",
        ),
        ({"cache_config": {"kv_offloading_size": 2}, "kv_transfer_config": {}}, True, "OffloadingConnector"),
    ],
)
def test_a_connector_counts_when_it_is_active(
    chosen: dict[str, Any], active: bool, connector: str | None
) -> None:
    found = facts(**chosen)
    assert found["kv_transfer_config.is_active"] is active
    assert found["kv_transfer_config.kv_connector"] == connector


def test_unset_sections_read_as_null_and_empty_ones_are_set() -> None:
    unset, empty = (
        facts(),
        facts(speculative_config={}, lora_config={}, kv_transfer_config={}, compilation_config={}),
    )
    for section in ("speculative_config", "lora_config", "kv_transfer_config", "compilation_config"):
        assert unset[section] is None
        assert empty[section] is True
    assert unset["speculative_config.parallel_drafting"] is None
    assert empty["speculative_config.parallel_drafting"] is False


@pytest.mark.parametrize(
    ("speculative", "method"),
    [
        ({"method": "mtp"}, "mtp"),
        ({"model": "ngram"}, "ngram"),
        ({"model": "org/EAGLE3-LLaMA"}, "eagle3"),
        ({"model": "org/eagle-vicuna"}, "eagle"),
        ({"model": "org/small-llama"}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_the_speculative_method(speculative: dict[str, Any], method: FactValue) -> None:
    assert facts(speculative_config=speculative)["speculative_config.method"] == method


@pytest.mark.parametrize(
    ("asked", "stored", "environment", "dtype"),
    [
        ("auto", "bfloat16", "gpu", "bfloat16"),
        ("auto", None, "gpu", "float32"),
        ("auto", "bfloat16", "cpu", "float32"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
        ("auto", "float64", "gpu", "other"),
    ],
)
def test_the_dtype_for_the_platform(asked: str, stored: str | None, environment: str, dtype: str) -> None:
    chosen = facts(
        {**LLAMA, "torch_dtype": stored},
        CPU if environment == "cpu" else assumed_gpu(),
        model_config={"model": "m", "dtype": asked},
    )
    assert chosen["model_config.dtype"] == dtype


def test_the_device_asked_for_beats_the_platform() -> None:
    found = facts(device_config={"device": "cpu"})
    assert (found["device_config.device"], found["environment.platform"]) == ("cpu", "cuda")
    assert found["model_config.dtype"] == "float32"
    assert facts(environment=CPU)["device_config.device"] == "cpu"


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        (LLAMA, "full"),
        ({**LLAMA, "model_type": "mistral", "sliding_window": 8}, "sliding"),
        ({**LLAMA, "layer_types": ["full_attention", "sliding_attention"]}, "mixed"),
        ({**LLAMA, "layer_types": ["chunked_attention", "full_attention"]}, "other"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "none"),
    ],
)
def test_the_attention_pattern(model: dict[str, Any], pattern: str) -> None:
    assert facts(model)["model_config.attention_pattern"] == pattern


def test_only_what_is_asked_for_is_derived() -> None:
    names = ["environment.platform", "model_config.is_moe"]
    config = EngineConfig.from_flat("m")
    assert derive_facts(config, None, CPU, names=names) == {
        "environment.platform": "cpu",
        "model_config.is_moe": UNKNOWN,
    }
