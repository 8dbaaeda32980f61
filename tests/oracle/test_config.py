"""EngineConfig: immutable, refuses what it doesn't know, equal after a round trip, and every field is
used."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.flat import FLAT_ARGUMENTS, SECTION_ARGUMENTS, flat_names
from dodona.oracle.config.sections import OPTIONAL_SECTIONS, SECTIONS, CompilationMode, ParallelConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.facts import FACTS, derive_facts

ROOT = Path(__file__).parents[2]


def config(**sections: Any) -> EngineConfig:
    return EngineConfig.from_mapping({"model_config": {"model": "m"}, **sections})


def test_every_section_and_field_is_frozen() -> None:
    full = config(**{name: {} for name in OPTIONAL_SECTIONS})
    with pytest.raises(dataclasses.FrozenInstanceError):
        full.model_config = None  # type: ignore[misc,assignment]
    for name in SECTIONS:
        section = getattr(full, name)
        field = dataclasses.fields(section)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, field, getattr(section, field))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"paralel_config": {}}, "paralel_config: no such section; did you mean 'parallel_config'?"),
        (
            {"tensor_parallel_size": 2},
            "tensor_parallel_size: no such section; it is a field of parallel_config (flat names: Eng",
        ),
        (
            {"parallel_config": {"tensor_paralel_size": 2}},
            "parallel_config.tensor_paralel_size: no such field; did you mean 'tensor_parallel_size'?",
        ),
        (
            {"parallel_config": {"tensor_parallel_size": 0}},
            "parallel_config.tensor_parallel_size: expected greater",
        ),
        ({"parallel_config": {"tensor_parallel_size": "2"}}, "expected a valid integer, got '2'"),
        ({"parallel_config": {"tensor_parallel_size": True}}, "expected a valid integer, got True"),
        ({"parallel_config": {"enable_expert_parallel": 1}}, "expected a valid boolean, got 1"),
        ({"model_config": {}}, "model_config.model: required, but not given"),
        ({"model_config": {"model": "m", "dtype": "int8"}}, "model_config.dtype: expected 'auto'"),
        ({"compilation_config": {"mode": "FASTEST"}}, "expected one of NONE (0), STOCK_TORCH_COMPILE (1)"),
        ({"compilation_config": {"mode": True}}, "expected one of NONE (0)"),
        ({"kv_transfer_config": {"kv_connector_extra_config": "[]"}}, "expected a JSON object"),
        (
            {"kv_transfer_config": {"kv_connector_extra_config": "{"}},
            "kv_transfer_config.kv_connector_extra_config",
        ),
        (
            {"cache_config": {"gpu_memory_utilization": 1.5}},
            "cache_config.gpu_memory_utilization: expected less",
        ),
        ({"parallel_config": 3}, "parallel_config: expected"),
    ],
)
def test_what_is_wrong_is_named(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**sections)
    assert message in str(caught.value)


def test_sections_built_directly_raise_the_same_error() -> None:
    with pytest.raises(
        ConfigError, match=r"parallel_config\.pipeline_paralel_size: no such field; did you mean"
    ):
        ParallelConfig(pipeline_paralel_size=2)  # type: ignore[call-arg]


def test_null_means_defaults_or_not_configured() -> None:
    assert config(parallel_config=None, speculative_config=None) == config()
    assert config(speculative_config={}).speculative_config is not None


@pytest.mark.parametrize("given", [1, "1", "stock_torch_compile", "STOCK_TORCH_COMPILE", CompilationMode(1)])
def test_compilation_modes_have_one_canonical_form(given: object) -> None:
    compilation = config(compilation_config={"mode": given}).compilation_config
    assert compilation is not None
    assert compilation.mode == "STOCK_TORCH_COMPILE"


names = st.text("abc/-_.", min_size=1, max_size=8)
counts = st.integers(1, 2**40)
configurations = st.fixed_dictionaries(
    {
        "model_config": st.fixed_dictionaries(
            {"model": names}, optional={"seed": counts, "quantization": names}
        )
    },
    optional={
        "cache_config": st.fixed_dictionaries(
            {}, optional={"block_size": counts, "kv_offloading_size": st.floats(0, 9)}
        ),
        "parallel_config": st.fixed_dictionaries({}, optional={"tensor_parallel_size": counts}),
        "speculative_config": st.none() | st.fixed_dictionaries({}, optional={"method": st.none() | names}),
        "lora_config": st.none() | st.just({}),
        "compilation_config": st.fixed_dictionaries(
            {}, optional={"mode": st.sampled_from([0, 1, "none", "VLLM_COMPILE"])}
        ),
        "kv_transfer_config": st.fixed_dictionaries(
            {},
            optional={
                "kv_connector": names,
                "kv_connector_extra_config": st.dictionaries(
                    names, st.integers() | st.none() | st.lists(names)
                ),
            },
        ),
    },
)


@given(configurations)
def test_round_trips_and_hashes(sections: dict[str, Any]) -> None:
    made = EngineConfig.from_mapping(sections)
    again = EngineConfig.from_json(made.to_json())
    assert again == made
    assert hash(again) == hash(made)
    assert EngineConfig.from_mapping(made.to_mapping()) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) == made
    json.loads(made.to_json())


def test_bad_json_is_a_config_error() -> None:
    for text in ("", "{", "[]", "3"):
        with pytest.raises(ConfigError, match="JSON"):
            EngineConfig.from_json(text)


def test_flat_names_cover_every_field_once() -> None:
    fields = {(s, f.name) for s, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
    flat = set(FLAT_ARGUMENTS.values())
    assert flat | {(s, f) for s, f in fields if s in SECTION_ARGUMENTS} == fields
    assert len(flat) == len(FLAT_ARGUMENTS)
    assert len(set(flat_names())) == len(flat_names())


def test_flat_arguments_reach_their_fields() -> None:
    made = EngineConfig.from_flat(
        "m",
        kv_cache_dtype="fp8",
        tensor_parallel_size=2,
        enable_lora=True,
        max_lora_rank=8,
        compilation_config=1,
        speculative_config='{"method": "ngram"}',
    )
    assert (made.cache_config.cache_dtype, made.parallel_config.tensor_parallel_size) == ("fp8", 2)
    assert made.lora_config is not None
    assert made.lora_config.max_lora_rank == 8
    assert made.compilation_config is not None
    assert made.compilation_config.mode == "STOCK_TORCH_COMPILE"
    assert made.speculative_config is not None
    assert made.speculative_config.method == "ngram"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensor_paralel_size": 2}, "did you mean 'tensor_parallel_size'?"),
        ({"max_loras": 2}, "max_loras: has a meaning only with enable_lora=True"),
        ({"enable_lora": 1}, "enable_lora: expected true or false"),
        ({"speculative_config": "{"}, "speculative_config: not valid JSON"),
        ({"speculative_config": "ngram"}, "speculative_config: expected a JSON object"),
        ({"speculative_config": {"suffix_decoding_min_token_prob": True}}, "suffix_decoding_min_token_prob"),
        ({"speculative_config": {"suffix_decoding_min_token_prob": 1.1}}, "suffix_decoding_min_token_prob"),
        ({"speculative_config": {"suffix_decoding_max_spec_factor": "1"}}, "suffix_decoding_max_spec_factor"),
        ({"kv_transfer_config": 1}, "kv_transfer_config: expected a JSON object"),
        ({"compilation_config": 9}, "compilation_config.mode: expected one of"),
    ],
)
def test_wrong_flat_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_flat("m", **arguments)
    assert message in str(caught.value)


def test_older_names_of_mtp_are_rewritten() -> None:
    made = EngineConfig.from_flat("m", speculative_config={"method": "deepseek_mtp"})
    assert made.speculative_config is not None
    assert made.speculative_config.method == "mtp"


# --- Every field is used: by a fact, by the runtime, or it belongs to a feature that is refused as a whole.

REFUSED_WITH_THEIR_SECTION = {
    "kv_transfer_config": "kv-connector",
}
"""Section → the rule that refuses every configuration in which its further fields would have a meaning."""


def all_fields() -> set[str]:
    return {f"{s}.{f.name}" for s, cls in SECTIONS.items() for f in dataclasses.fields(cls)}


def fields_of_facts() -> set[str]:
    return {field for spec in FACTS.values() for field in spec.reads}


def attributes_read(*folders: str) -> set[str]:
    read: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if path.name not in ("config.py", "facts.py"):
                read |= {
                    n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
                }
    return read


def test_facts_name_real_fields() -> None:
    assert fields_of_facts() <= all_fields()


def test_every_field_is_used() -> None:
    read = attributes_read("runners", "oracle")
    unused = {
        field
        for field in all_fields() - fields_of_facts()
        if field.split(".")[0] not in REFUSED_WITH_THEIR_SECTION and field.split(".")[1] not in read
    }
    assert unused == set()


@pytest.mark.parametrize(("section", "rule"), REFUSED_WITH_THEIR_SECTION.items())
def test_features_whose_fields_nothing_reads_are_refused(section: str, rule: str, tmp_path: Path) -> None:
    from dodona.oracle.select import select_runner

    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    active = {"kv_connector": "AnyConnector", "kv_role": "kv_both"} if section == "kv_transfer_config" else {}
    with pytest.raises(UnsupportedConfiguration) as caught:
        select_runner({"model_config": {"model": str(tmp_path)}, section: active}, environment=assumed_gpu())
    verdict = caught.value.verdict
    assert verdict is not None
    assert rule in {reason.rule for reason in verdict.refusals}


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
CHANGES: dict[str, Any] = {
    "model_config.runner": "pooling",
    "model_config.convert": "embed",
    "model_config.quantization": "fp8",
    "model_config.dtype": "float16",
    "model_config.trust_remote_code": True,
    "model_config.enforce_eager": True,
    "model_config.max_model_len": 77,
    "cache_config.enable_prefix_caching": False,
    "cache_config.cache_dtype": "fp8",
    "cache_config.kv_offloading_size": 1.5,
    "cache_config.gpu_memory_utilization": 0.01,
    "parallel_config.enable_expert_parallel": True,
    "parallel_config.distributed_executor_backend": "mp",
    "parallel_config.data_parallel_backend": "ray",
    "parallel_config.data_parallel_external_lb": True,
    "parallel_config.data_parallel_hybrid_lb": True,
    "scheduler_config.enable_chunked_prefill": False,
    "device_config.device": "cpu",
    "load_config.load_format": "dummy",
    "speculative_config.method": "ngram",
    "speculative_config.draft_tensor_parallel_size": 2,
    "speculative_config.model": "some/eagle3-draft",
    "speculative_config.parallel_drafting": True,
    "compilation_config.mode": "NONE",
    "kv_transfer_config.kv_connector": "X",
    "kv_transfer_config.kv_role": "kv_both",
    "kv_transfer_config.kv_buffer_device": "cpu",
    "kv_transfer_config.kv_ip": "127.0.0.1",
    "kv_transfer_config.engine_id": "one",
    "kv_transfer_config.kv_connector_extra_config": {"cpu_bytes_to_use": 1},
    "model_config.tokenizer": "/missing",
    "model_config.skip_tokenizer_init": True,
    "model_config.generation_config": "/missing",
    "pooler_config.dimensions": 10**6,
    "speculative_config.suffix_decoding_min_token_prob": 0.5,
}
OFFLOADING = {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}}
NGRAM = {
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2},
}
SUFFIX = {"speculative_config": {"method": "suffix", "suffix_decoding_max_cached_requests": 0}}
BEFORE: dict[str, dict[str, dict[str, Any]]] = {
    "cache_config.num_gpu_blocks_override": {"model_config": {"max_model_len": 64}},
    "model_config.skip_tokenizer_init": {"model_config": {"tokenizer": "/missing"}},
    "pooler_config.dimensions": {"model_config": {"runner": "pooling"}},
    "speculative_config.prompt_lookup_max": SUFFIX,
    "speculative_config.prompt_lookup_min": NGRAM,
    **{f"kv_transfer_config.{name}": OFFLOADING for name in (
        "kv_buffer_device", "kv_ip", "kv_port", "kv_rank", "kv_parallel_size", "engine_id",
        "kv_connector_extra_config",
    )},
    **{f"speculative_config.suffix_decoding_{name}": NGRAM for name in (
        "max_tree_depth", "max_cached_requests", "max_spec_factor", "min_token_prob",
    )},
}  # fmt: skip
"""What else is configured, where a field has a meaning only beside it."""
BESIDE_FILES = {"pooler_config.pooling_type"}
"""A field that matters only beside a pooling module of the model's own."""


@pytest.mark.parametrize("field", sorted(fields_of_facts() - BESIDE_FILES))
def test_a_changed_field_changes_a_fact_that_reads_it(field: str) -> None:
    section, name = field.split(".")
    before: dict[str, Any] = {s: {} for s in OPTIONAL_SECTIONS}
    if field == "cache_config.kv_offloading_backend":
        before["cache_config"] = {"kv_offloading_size": 1.0}
        changed: Any = "lmcache"
    elif field == "kv_transfer_config.kv_role":
        before["kv_transfer_config"] = {"kv_connector": "X"}
        changed = "kv_consumer"
    elif field == "kv_transfer_config.kv_connector_module_path":
        before["kv_transfer_config"] = {"kv_connector": "X", "kv_role": "kv_both"}
        changed = "some.module"
    else:
        before |= BEFORE.get(field, {})
        changed = CHANGES.get(field, 3)
    after = {**before, section: {**before.get(section, {}), name: changed}}
    if "model_config" in after:
        after["model_config"] = {"model": "m", **after["model_config"]}
    if "model_config" in before:
        before["model_config"] = {"model": "m", **before["model_config"]}
    model, machine = ModelInfo.from_mapping(LLAMA), dataclasses.replace(assumed_gpu(), memory=0.5)
    one, two = (derive_facts(config(**sections), model, machine) for sections in (before, after))
    moved = {
        fact for fact in one if one[fact] != two[fact] or (one[fact] is UNKNOWN) != (two[fact] is UNKNOWN)
    }
    assert moved & {spec.name for spec in FACTS.values() if field in spec.reads}
