"""What V2 lacks, by hand, and the check that its loader makes without asking the rules.

A test compares the list with the requires of V2 and the vetoes against V2 in the rule book.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import ParallelConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.companions import companions_fault
from dodona.oracle.systems.own.config_values import config_values_fault
from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.kv_transfer import kv_transfer_fault, lacks_connector
from dodona.oracle.systems.own.lengths import sizes_fault
from dodona.oracle.systems.own.memory import memory_fault
from dodona.oracle.systems.own.model_code import prompt_steps
from dodona.oracle.systems.own.parallel import (
    deploys_replicas_otherwise,
    exceeds_devices,
    lacks_executor,
    lacks_ray,
    quantized_share_fault,
    splits_gpus_by_ray,
    uneven_size,
)
from dodona.oracle.systems.own.pooler import lacks_combination, pooler_fault
from dodona.oracle.systems.own.pooling import has_unused_pooler, pooling_task
from dodona.oracle.systems.own.quantization import quantization_fault, quantization_scheme
from dodona.oracle.systems.own.resolved import (
    resolved_device,
    resolved_dtype,
    resolved_runner_type,
    resolved_speculative_method,
)
from dodona.oracle.systems.own.speculation import speculation_fault
from dodona.oracle.systems.own.weights import weights_fault
from dodona.runners.v2.models.registry import MODEL_FAMILIES, POOLING_FAMILIES

HEAD_SIZES = (16, 32, 64, 128, 256)
BLOCK_SIZES = (16, 32, 64, 128, 256)
ROPE_TYPES = ("default", "llama3")
DTYPES = ("float32", "bfloat16", "float16")
MIN_COMPUTE_CAPABILITY = 80
FP8_SCHEMES = ("w8a16_fp8", "w8a8_fp8", "w8a8_fp8_block")
FP8_COMPUTE_CAPABILITY = 89
QUANTIZATION_SCHEMES = ("w4a16", "w8a16", "w8a8_int8", *FP8_SCHEMES)

SERVED_TASKS = ("embed", "classify", "token_classify")
"""Pooling tasks that `pooling.runner.V2PoolingRunner` computes."""

SPECULATIVE_METHODS = ("ngram", "suffix", "draft_model", "eagle", "eagle3")
"""Methods of speculative decoding that V2 has a drafter for."""

LACKS: frozenset[str] = frozenset(
    {
        "cuda",
        "triton",
        "compute-capability",
        "architecture",
        "draft-runner",
        "pooling",
        "pooling-combinations",
        "pooling-chunks",
        "pooler-config",
        "head-size",
        "query-groups",
        "rope",
        "partial-rotary",
        "activation",
        "dtype",
        "attention-bias",
        "mlp-bias",
        "attention-pattern",
        "plain-arithmetic",
        "block-size",
        "moe",
        "quantization",
        "quantized-weights",
        "fp8-compute-capability",
        "hybrid-mamba",
        "encoder-decoder",
        "remote-code",
        "device-count",
        "executor-backend",
        "ray-device",
        "ray-package",
        "tensor-parallel-sizes",
        "tensor-parallel-groups",
        "pipeline-parallelism",
        "data-parallel-deployment",
        "prefill-context-parallelism",
        "decode-context-parallelism",
        "expert-parallelism",
        "lora",
        "sizes",
        "companion-directories",
        "config-values",
        "memory",
        "weights",
        "speculative-settings",
        "kv-connector-settings",
        "pooler-settings",
        "speculative-decoding",
        "draft-tensor-parallelism",
        "parallel-drafting",
        "eagle3-pipeline-parallelism",
        "kv-connector",
        "speculative-kv-connector",
        "kv-cache-dtype",
        "stock-torch-compile",
        "dynamo-trace-once",
        "vllm-compile",
    }
)
"""Rule ids of rules/dodona.yaml that are requires of V2 or veto it."""


def check_supported(
    config: EngineConfig, model: ModelInfo, environment: Environment, *, interpreted: bool = False
) -> tuple[str, ...]:
    """The features, as in `LACKS`, that this configuration asks for and V2 lacks.

    `environment` is the machine. `interpreted`: Triton's interpreter runs the kernels, so a CPU will do
    (tests).
    """
    device = resolved_device(config, environment)
    lacking = {
        **({} if interpreted else _machine(config, model, device, environment)),
        "device-count": exceeds_devices(config, environment),
        **_model(config, model, device),
        "companion-directories": companions_fault(config, model, environment) is not None,
        "memory": memory_fault(config, model, environment) is not None,
        "config-values": config_values_fault(model) is not None,
        "weights": weights_fault(config, model, environment) is not None,
        "sizes": sizes_fault(config, model, environment) is not None,
        "kv-connector-settings": kv_transfer_fault(config) is not None,
        "pooler-settings": pooler_fault(config, model, environment) is not None,
        "speculative-settings": speculation_fault(config, model, environment) is not None,
        **_features(config),
        **_workers(config, model),
    }
    if interpreted and resolved_dtype(config, model, device) == "bfloat16":
        lacking["dtype"] = True  # the interpreter computes wrong numbers in it, silently
    return tuple(feature for feature, asked in lacking.items() if asked)


def lacks_of_draft(
    config: EngineConfig, draft: ModelInfo, *, check: Callable[[EngineConfig, ModelInfo], tuple[str, ...]]
) -> tuple[str, ...]:
    """What V2 lacks for a draft model, which is whole on every rank. `check`: `check_supported` of this
    machine; `config`: the target's, without speculative_config."""
    return check(replace(config, parallel_config=ParallelConfig()), draft)


def _machine(
    config: EngineConfig, model: ModelInfo, device: str, environment: Environment
) -> dict[str, bool]:
    capability = environment.compute_capability
    is_fp8 = quantization_scheme(config, model) in FP8_SCHEMES
    return {
        "cuda": not device == environment.platform == "cuda",
        "ray-device": splits_gpus_by_ray(config, environment),
        "ray-package": lacks_ray(config, environment),
        "triton": not environment.has_triton,
        "compute-capability": capability is None or capability < MIN_COMPUTE_CAPABILITY,
        "fp8-compute-capability": is_fp8 and capability is not None and capability < FP8_COMPUTE_CAPABILITY,
    }


def _model(config: EngineConfig, model: ModelInfo, device: str) -> dict[str, bool]:
    kinds, scheme = set(model.layer_kinds), quantization_scheme(config, model)
    runner_type, task = resolved_runner_type(config, model), pooling_task(config, model)
    return {
        "architecture": not set(model.architectures)
        & (POOLING_FAMILIES if runner_type == "pooling" else MODEL_FAMILIES).keys(),
        "draft-runner": runner_type == "draft",
        "pooling": task is not None and task not in SERVED_TASKS,
        "pooling-chunks": prompt_steps(config, model) in ("several", "too_long"),
        "pooling-combinations": runner_type == "pooling" and lacks_combination(config),
        "pooler-config": has_unused_pooler(config, model) is True,
        "head-size": model.head_size not in HEAD_SIZES,
        "query-groups": model.num_queries_per_kv is None,
        "rope": model.rope_type not in ROPE_TYPES,
        "partial-rotary": model.rope is not None and model.rope.is_partial,
        "activation": model.hidden_act != "silu",
        "dtype": resolved_dtype(config, model, device) not in DTYPES,
        "attention-bias": model.attention_bias,
        "mlp-bias": model.mlp_bias,
        "attention-pattern": model.is_attention_free
        or kinds not in (set(), {"full_attention"}, {"sliding_attention"}),
        "plain-arithmetic": bool(model.math_modifiers),
        "moe": model.is_moe,
        "quantization": quantization_fault(config, model) is not None,
        "quantized-weights": scheme not in (None, "other", *QUANTIZATION_SCHEMES),
        "hybrid-mamba": model.has_inner_state,
        "encoder-decoder": model.is_encoder_decoder,
        "remote-code": model.has_remote_code and config.model_config.trust_remote_code,
    }


def _features(config: EngineConfig) -> dict[str, bool]:
    parallel, speculative = config.parallel_config, config.speculative_config
    mode = config.compilation_config.mode if config.compilation_config else None
    pipeline = parallel.pipeline_parallel_size > 1
    return {
        "block-size": config.cache_config.block_size not in BLOCK_SIZES,
        "executor-backend": lacks_executor(parallel),
        "pipeline-parallelism": pipeline,
        "data-parallel-deployment": deploys_replicas_otherwise(parallel),
        "prefill-context-parallelism": parallel.prefill_context_parallel_size > 1,
        "decode-context-parallelism": parallel.decode_context_parallel_size > 1,
        "expert-parallelism": parallel.enable_expert_parallel,
        "lora": config.lora_config is not None,
        "speculative-decoding": speculative is not None
        and resolved_speculative_method(config) not in SPECULATIVE_METHODS,
        "draft-tensor-parallelism": speculative is not None
        and (speculative.draft_tensor_parallel_size or 1) > 1,
        "parallel-drafting": speculative is not None
        and speculative.parallel_drafting
        and resolved_speculative_method(config) != "eagle3",
        "eagle3-pipeline-parallelism": pipeline
        and speculative is not None
        and speculative.method == "eagle3",
        "kv-connector": lacks_connector(config),
        "speculative-kv-connector": has_active_connector(config)
        and resolved_speculative_method(config) in ("draft_model", "eagle", "eagle3", "mtp"),
        "kv-cache-dtype": config.cache_config.cache_dtype != "auto",
        "stock-torch-compile": mode == "STOCK_TORCH_COMPILE",
        "dynamo-trace-once": mode == "DYNAMO_TRACE_ONCE",
        "vllm-compile": mode == "VLLM_COMPILE",
    }


def _workers(config: EngineConfig, model: ModelInfo) -> dict[str, bool]:
    return {
        "tensor-parallel-sizes": isinstance(uneven_size(config, model), str),
        "tensor-parallel-groups": quantized_share_fault(config, model) is not None,
    }
