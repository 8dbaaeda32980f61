"""V2's own refusals, without the rules; the same rules' ids by hand."""

from __future__ import annotations

import json
import shutil

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.limits import resolve_limits
from dodona.runners.v2.capabilities import LACKS, check_supported
from dodona.runners.v2.models.registry import make_spec
from tests.v2.drive import make_runner

GPU = Environment(has_triton=True, platform="cuda", compute_capability=90)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rope_theta": 10000.0,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
NATIVE = {"kv_offloading_size": 1.0}
OFFLOADING = {"kv_offloading_size": 1.0, "kv_offloading_backend": "lmcache"}


def lacking(raw, environment=GPU, **flat):
    config = EngineConfig.from_flat("some-model", **flat)
    return check_supported(config, ModelInfo.from_mapping(raw), environment)


@pytest.mark.parametrize("raw", [LLAMA, MISTRAL, QWEN3])
@pytest.mark.parametrize(
    "flat",
    [
        {},
        {"dtype": "float16"},
        {"block_size": 64},
        {"kv_transfer_config": {}},
        NATIVE,
        {"distributed_executor_backend": "ray"},
        {"data_parallel_backend": "ray", "data_parallel_size": 2},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        {"speculative_config": {"method": "draft_model", "model": "m", "num_speculative_tokens": 2}},
        {"speculative_config": {"method": "eagle3", "model": "m", "parallel_drafting": True}},
    ],
)
def test_what_v2_has(raw, flat):
    assert lacking(raw, **flat) == ()


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"architectures": ["Gemma2ForCausalLM"]}, "architecture"),
        ({"head_dim": 80}, "head-size"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 64}, "query-groups"),
        ({"rope_scaling": YARN}, "rope"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope"),
        ({"partial_rotary_factor": 0.5}, "partial-rotary"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"torch_dtype": "float64"}, "dtype"),
        ({"attention_bias": True}, "attention-bias"),
        ({"mlp_bias": True}, "mlp-bias"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "attention-pattern"),
        ({"attn_logit_softcapping": 30.0}, "plain-arithmetic"),
        ({"final_logit_softcapping": 30.0}, "plain-arithmetic"),
        ({"num_experts": 8}, "moe"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True}},
            "quantized-weights",
        ),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization"),
    ],
)
def test_assumptions_about_config_json(changes, feature):
    assert feature in lacking({**LLAMA, **changes})


@pytest.mark.parametrize(
    ("flat", "feature"),
    [
        ({"runner": "draft"}, "draft-runner"),
        ({"runner": "pooling", "distributed_executor_backend": "mp"}, "pooling-combinations"),
        ({"runner": "pooling", "max_num_batched_tokens": 16, "max_model_len": 64}, "pooling-chunks"),
        ({"pooler_config": {}}, "pooler-config"),
        ({"block_size": 48}, "block-size"),
        ({"quantization": "awq"}, "quantization"),
        ({"tensor_parallel_size": 3}, "tensor-parallel-sizes"),
        ({"pipeline_parallel_size": 2}, "pipeline-parallelism"),
        ({"distributed_executor_backend": "external_launcher"}, "executor-backend"),
        ({"distributed_executor_backend": "ray", "tensor_parallel_size": 2}, "ray-device"),
        ({"data_parallel_backend": "ray", "tensor_parallel_size": 2}, "ray-device"),
        ({"data_parallel_rank": 0}, "data-parallel-deployment"),
        (
            {"data_parallel_backend": "ray", "distributed_executor_backend": "mp"},
            "data-parallel-deployment",
        ),
        ({"prefill_context_parallel_size": 2}, "prefill-context-parallelism"),
        ({"decode_context_parallel_size": 2}, "decode-context-parallelism"),
        ({"enable_expert_parallel": True}, "expert-parallelism"),
        ({"speculative_config": {"method": "medusa"}}, "speculative-decoding"),
        ({"speculative_config": {"method": "ngram", "parallel_drafting": True}}, "parallel-drafting"),
        (
            {"speculative_config": {"method": "eagle", "model": "m"}, "kv_offloading_size": 1.0},
            "speculative-kv-connector",
        ),
        (
            {"speculative_config": {"method": "ngram", "draft_tensor_parallel_size": 2}},
            "draft-tensor-parallelism",
        ),
        (
            {"speculative_config": {"method": "eagle3", "model": "m"}, "pipeline_parallel_size": 2},
            "eagle3-pipeline-parallelism",
        ),
        ({"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}}, "kv-connector"),
        (OFFLOADING, "kv-connector"),
        ({"kv_cache_dtype": "fp8"}, "kv-cache-dtype"),
        ({"compilation_config": {"mode": 1}}, "stock-torch-compile"),
        ({"compilation_config": {"mode": 2}}, "dynamo-trace-once"),
        ({"compilation_config": {"mode": 3}}, "vllm-compile"),
    ],
)
def test_features(flat, feature):
    assert feature in lacking(LLAMA, **flat)


@pytest.mark.parametrize(
    ("environment", "features"),
    [
        (Environment(has_triton=False, platform="cpu"), {"cuda", "triton", "compute-capability"}),
        (Environment(has_triton=True, platform="cuda", compute_capability=75), {"compute-capability"}),
        (Environment(has_triton=False, platform="cuda", compute_capability=90), {"triton"}),
    ],
)
def test_machines(environment, features):
    assert set(lacking(LLAMA, environment)) == features


def test_asking_for_the_cpu_on_a_gpu_machine():
    assert lacking(LLAMA, device="cpu") == ("cuda",)


def test_the_interpreter_stands_in_for_a_gpu_but_not_in_bfloat16():
    cpu, info = Environment(has_triton=False, platform="cpu"), ModelInfo.from_mapping(LLAMA)
    for dtype, expected in (("auto", ()), ("float16", ()), ("bfloat16", ("dtype",))):
        config = EngineConfig.from_flat("some-model", dtype=dtype)
        assert check_supported(config, info, cpu, interpreted=True) == expected


def test_every_refusal_is_among_the_declared_ones():
    everything = {
        **LLAMA, "architectures": ["X"], "head_dim": 80, "num_attention_heads": 3, "num_key_value_heads": 2,
        "hidden_act": "gelu", "attention_bias": True, "mlp_bias": True, "is_encoder_decoder": True,
    }  # fmt: skip
    found = lacking(everything, Environment(has_triton=False, platform="cpu"), runner="draft", block_size=8)
    assert set(found) <= LACKS
    assert len(found) > 8


def test_the_loader_refuses_by_itself(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama", head_dim=16), path)
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] = {**YARN, "rope_theta": 10000.0}
    (path / "config.json").write_text(json.dumps(config))
    runner = make_runner(path, load=False)
    with pytest.raises(UnsupportedConfiguration) as error:
        runner.load_model()
    assert error.value.features == ("rope",)


@pytest.mark.parametrize(
    ("raw", "window"),
    [
        ({**MISTRAL, "sliding_window": 64}, 64),
        ({**MISTRAL, "sliding_window": None}, None),
        ({**LLAMA, "sliding_window": 64}, None),
        ({**QWEN3, "sliding_window": 64, "use_sliding_window": False}, None),
        ({**QWEN3, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}, 64),
    ],
)
def test_windows_are_those_of_transformers(raw, window):
    model = ModelInfo.from_mapping(raw)
    spec = make_spec(model, resolve_limits(EngineConfig.from_flat("some-model", device="cuda"), model))
    assert spec.window == window
