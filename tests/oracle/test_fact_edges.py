"""Facts at their edges: sizes that are too large or not there, fields that are configured against what the
model says, lengths at which rotary frequencies begin to change."""

from __future__ import annotations

from typing import Any

import pytest

from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import MAX_INT, UNKNOWN, FactValue
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.machine.packages import PACKAGES
from dodona.oracle.models.config_fields import MAX_SIZE
from dodona.oracle.systems.own.facts import FACTS
from tests.oracle.test_facts import LLAMA, facts

MAMBA = {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
STRANGE = {"model_type": "nothing_known", "architectures": ["Strange"]}


def of_model(name: str, model: dict[str, Any] | None, **config: Any) -> FactValue:
    return facts(model, model_config={"model": "m", **config})[f"model_config.{name}"]


SIZES = (
    "head_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size",
)  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_not_told(name: str) -> None:
    assert of_model(name, STRANGE) is UNKNOWN


@pytest.mark.parametrize("name", ["num_attention_heads", "num_key_value_heads", "head_size"])
def test_a_model_without_attention_has_no_heads(name: str) -> None:
    assert of_model(name, MAMBA) is None


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("size", [1, 4096, MAX_SIZE])
def test_sizes_are_as_told_up_to_the_largest(name: str, size: int) -> None:
    assert of_model(name, {**LLAMA, name: size}) == size


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers"])
@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, 2**53, 10**30])
def test_sizes_beyond_the_largest_are_refused(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*whole number from"):
        of_model(name, {**LLAMA, name: size})


@pytest.mark.parametrize(
    "name", ["num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "hidden_size"]
)
def test_zero_is_no_size_of_these(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*from 1 to"):
        of_model("head_size", {**LLAMA, name: 0})


def test_many_layers_are_refused_before_they_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"num_hidden_layers.*to 100000, got 1000000000"):
        of_model("num_hidden_layers", {**LLAMA, "num_hidden_layers": 10**9})


def test_fields_are_as_configured_up_to_the_largest_integer() -> None:
    def size(value: int) -> FactValue:
        return facts(scheduler_config={"max_num_seqs": value})["scheduler_config.max_num_seqs"]

    assert [size(1), size(7), size(MAX_INT + 9)] == [1, 7, MAX_INT]
    assert size(2**60) == 2**53  # up to there doubles, and so JSON's numbers, are exact
    assert facts(cache_config={"enable_prefix_caching": False})["cache_config.enable_prefix_caching"] is False
    assert facts(lora_config={"max_loras": 3})["lora_config.max_loras"] == 3
    assert facts()["lora_config.max_loras"] is None
    assert facts()["model_config.max_model_len"] is None
    assert of_model("max_model_len", LLAMA, max_model_len=77) == 77


@pytest.mark.parametrize(
    ("configured", "model", "expected"),
    [
        ("auto", LLAMA, "generate"),
        ("auto", {**LLAMA, "architectures": ["BertModel"]}, "pooling"),
        ("auto", None, UNKNOWN),
        ("pooling", LLAMA, "pooling"),
        ("generate", {**LLAMA, "architectures": ["BertModel"]}, "generate"),
        ("draft", None, "draft"),
    ],
)
def test_the_runner_type(configured: str, model: dict[str, Any] | None, expected: FactValue) -> None:
    assert of_model("runner_type", model, runner=configured) == expected


@pytest.mark.parametrize(
    ("architecture", "configured", "task", "has_model"),
    [
        ("LlamaForCausalLM", {}, None, None),
        ("LlamaForCausalLM", {"runner": "pooling"}, "embed", True),
        ("LlamaForCausalLM", {"convert": "embed"}, "embed", True),
        ("LlamaForCausalLM", {"convert": "classify"}, "classify", True),
        ("LlamaForCausalLM", {"convert": "none"}, None, None),
        ("LlamaModel", {}, "embed", True),
        ("LlamaForSequenceClassification", {}, "classify", True),
        ("LlamaForSequenceClassification", {"convert": "embed"}, "embed", True),
        ("LlamaForTokenClassification", {}, "token_classify", True),
        ("LlamaForRewardModel", {}, "reward", False),
        ("HF_ColBERT", {}, "late_interaction", False),
        ("LlamaForSequenceClassification", {"runner": "generate"}, None, None),
    ],
)
def test_the_pooling_task(architecture, configured, task, has_model) -> None:
    model = {**LLAMA, "architectures": [architecture]}
    assert of_model("pooling_task", model, **configured) == task
    assert of_model("has_pooling_model", model, **configured) == has_model


@pytest.mark.parametrize(
    ("configured", "model", "expected"),
    [
        (None, LLAMA, None),
        (None, None, UNKNOWN),
        (None, {**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ("AWQ", {**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "awq"),
        ("fp8", LLAMA, "fp8"),
    ],
)
def test_the_quantization(configured: str | None, model: dict[str, Any] | None, expected: FactValue) -> None:
    assert of_model("quantization", model, quantization=configured) == expected


@pytest.mark.parametrize(
    ("configured", "model", "environment", "expected"),
    [
        ("auto", None, assumed_gpu(), UNKNOWN),
        ("auto", None, Environment(False, "cpu"), "float32"),
        ("float16", None, Environment(False, "cpu"), "float16"),
        ("auto", {**LLAMA, "torch_dtype": "float16"}, assumed_gpu(), "float16"),
        ("auto", {**LLAMA, "torch_dtype": "float32"}, assumed_gpu(), "float32"),
    ],
)
def test_the_dtype(
    configured: str, model: dict[str, Any] | None, environment: Environment, expected: FactValue
) -> None:
    found = facts(model, environment, model_config={"model": "m", "dtype": configured})
    assert found["model_config.dtype"] == expected


YARN = {"rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize(
    ("model", "longest", "expected"),
    [
        ({**LLAMA, "max_position_embeddings": 64, "rope_scaling": YARN}, None, False),
        ({**LLAMA, "max_position_embeddings": 64, "rope_scaling": YARN}, 63, False),
        ({**LLAMA, "max_position_embeddings": 64, "rope_scaling": YARN}, 64, False),
        ({**LLAMA, "max_position_embeddings": 64, "rope_scaling": YARN}, 65, True),
        ({**LLAMA, "max_position_embeddings": 64}, 1000, False),
        ({**LLAMA, "max_position_embeddings": 64}, None, False),
        (None, 65, UNKNOWN),
    ],
)
def test_lengths_that_outgrow_the_rotary_frequencies(
    model: dict[str, Any] | None, longest: int | None, expected: FactValue
) -> None:
    assert of_model("outgrows_rope", model, max_model_len=longest) is expected


def test_the_length_of_the_frequencies_is_that_of_the_original_model() -> None:
    longrope = {
        "rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32,
        "original_max_position_embeddings": 32, "factor": 2.0,
    }  # fmt: skip
    model = {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 64,
        "original_max_position_embeddings": 32, "rope_scaling": longrope,
    }  # fmt: skip
    assert of_model("rope_fixed_length", model) == 32
    # Without `max_model_len` the model's own length counts.
    assert of_model("outgrows_rope", model) is True
    assert of_model("outgrows_rope", model, max_model_len=32) is False


@pytest.mark.parametrize(
    ("speculative", "expected"),
    [
        (None, None),
        ({"model": "[ngram]"}, "ngram"),
        ({"model": "NGram"}, "ngram"),
        ({"model": "org/DFlash-8B"}, "dflash"),
        ({"model": "org/Medusa-7b"}, "medusa"),
        ({"model": "org/eagle3-medusa"}, "eagle3"),
        ({"model": "org/eagle-medusa"}, "eagle"),
        ({"model": "org/an-ngram-model"}, UNKNOWN),
        ({"method": "mtp", "model": "org/medusa"}, "mtp"),
    ],
)
def test_the_method_by_the_draft_models_name(speculative: dict[str, Any] | None, expected: FactValue) -> None:
    assert facts(speculative_config=speculative)["speculative_config.method"] == expected


@pytest.mark.parametrize(
    ("model", "inner_state", "attention_free", "hybrid"),
    [
        (LLAMA, False, False, False),
        (MAMBA, True, True, False),
        ({**LLAMA, "layer_types": ["full_attention", "mamba"]}, True, False, True),
    ],
)
def test_layers_with_an_inner_state(
    model: dict[str, Any], inner_state: bool, attention_free: bool, hybrid: bool
) -> None:
    found = [of_model(name, model) for name in ("has_inner_state", "is_attention_free", "is_hybrid")]
    assert found == [inner_state, attention_free, hybrid]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["sliding_attention"], "sliding"),
        (["full_attention"], "full"),
        (["sliding_attention", "full_attention", "sliding_attention"], "mixed"),
        (["sliding_attention", "chunked_attention"], "other"),
        (["chunked_attention"], "other"),
    ],
)
def test_the_pattern_of_attention_layers(kinds: list[str], expected: str) -> None:
    assert of_model("attention_pattern", {**LLAMA, "layer_types": kinds, "sliding_window": 8}) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LLAMA, False),
        ({**LLAMA, "partial_rotary_factor": 0.5}, True),
        (MAMBA, False),
    ],
)
def test_heads_that_are_rotated_in_part(model: dict[str, Any], expected: bool) -> None:
    assert of_model("has_partial_rotary", model) is expected


def test_modifiers_of_the_arithmetic_are_null_where_there_are_none() -> None:
    assert of_model("math_modifiers", LLAMA) is None
    assert of_model("math_modifiers", {**LLAMA, "logit_scale": 2.0}) == ("logit_scale",)


@pytest.mark.parametrize(("override", "capability"), [(None, 75), ("v1", 80), ("v2", 90)])
def test_the_environment(override: str | None, capability: int) -> None:
    machine = Environment(True, "cuda", override=override, compute_capability=capability)
    found = facts(environment=machine)
    assert found["environment.override"] == override
    assert found["environment.compute_capability"] == capability
    assert found["environment.has_triton"] is True


def test_which_facts_may_be_null_and_from_where_numbers_go() -> None:
    whole = {name: spec for name, spec in FACTS.items() if spec.type == "int"}
    from_zero = {name for name, spec in whole.items() if spec.minimum == 0}
    assert from_zero == {
        *(f"model_config.{name}" for name in (*SIZES, "num_experts", "rope_fixed_length")),
        "environment.compute_capability",
        "parallel_config.data_parallel_rank",
    }
    assert {spec.minimum for spec in whole.values()} == {0, 1}
    sections = {name for name, spec in FACTS.items() if spec.section}
    assert sections == {
        "lora_config", "speculative_config", "compilation_config", "kv_transfer_config", "pooler_config",
    }  # fmt: skip
    fields_of_sections = {name for name in FACTS if name.split(".")[0] in sections}
    nullable = {name for name, spec in FACTS.items() if spec.nullable}
    assert fields_of_sections - nullable == {
        "kv_transfer_config.is_active", "kv_transfer_config.has_connector_module", "pooler_config.is_unused",
    }  # fmt: skip
    assert nullable - fields_of_sections == {
        *(f"model_config.{name}" for name in SIZES),
        "model_config.companions_fault",
        "parallel_config.quantized_share_fault",
        "parallel_config.uneven_size",
        "scheduler_config.fault",
        "model_config.fault",
        "cache_config.fault",
        "load_config.fault",
        "model_config.pooling_task",
        "model_config.prompt_steps",
        "model_config.has_pooling_model",
        *(f"environment.{name}" for name in PACKAGES),
        "model_config.transformers_since",
        "model_config.quantization",
        "model_config.quantization_scheme",
        "model_config.quantization_fault",
        "model_config.num_queries_per_kv",
        "model_config.rope_fixed_length",
        "model_config.hidden_act",
        "model_config.sliding_window",
        "model_config.math_modifiers",
        "model_config.max_model_len",
        "scheduler_config.max_num_batched_tokens",
        "parallel_config.distributed_executor_backend",
        "parallel_config.data_parallel_rank",
        "environment.override",
        "environment.compute_capability",
        "environment.device_count",
    }
