"""The features that V1 lacks, and the check of a configuration for them before a model is loaded.

Both are written by hand and don't read the rules. The rule book's vetoes on v1 say the same; a test compares
the two.
"""

from __future__ import annotations

from dataclasses import replace

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import ParallelConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import LIBRARY_SCHEMES
from dodona.oracle.models.row_by_row import UNSERVED, UNSERVED_ARCHITECTURES
from dodona.oracle.systems.own.companions import companions_fault
from dodona.oracle.systems.own.config_values import config_values_fault
from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.kv_transfer import kv_transfer_fault, lacks_connector
from dodona.oracle.systems.own.lengths import sizes_fault
from dodona.oracle.systems.own.memory import memory_fault
from dodona.oracle.systems.own.model_code import (
    has_causal_lm,
    is_row_by_row,
    lacks_vision_package,
    needs_newer_transformers,
    outgrows_rope,
    prompt_steps,
)
from dodona.oracle.systems.own.parallel import (
    deploys_replicas_otherwise,
    exceeds_devices,
    fills_stages,
    lacks_executor,
    lacks_ray,
    splits_gpus_by_ray,
    uneven_size,
    uses_workers,
)
from dodona.oracle.systems.own.pooler import lacks_combination, pooler_fault
from dodona.oracle.systems.own.pooling import has_pooling_model, has_unused_pooler, pooling_task
from dodona.oracle.systems.own.quantization import (
    has_unread_experts,
    lacks_quantization_package,
    quantization_fault,
    quantization_scheme,
)
from dodona.oracle.systems.own.resolved import (
    resolved_device,
    resolved_runner_type,
    resolved_speculative_method,
)
from dodona.oracle.systems.own.speculation import speculation_fault
from dodona.oracle.systems.own.weights import weights_fault
from dodona.runners.v1.parallel_families import (
    EXPERT_PARALLEL_FAMILIES,
    PIPELINE_PARALLEL_FAMILIES,
    TENSOR_PARALLEL_FAMILIES,
)

SERVED_TASKS = ("embed", "classify", "token_classify")
"""Pooling tasks that `pooling.runner.V1PoolingRunner` computes."""

SPECULATIVE_METHODS = ("ngram", "suffix", "draft_model", "eagle", "eagle3", "mtp")
"""Methods of speculative decoding that V1 has a drafter for."""

MTP_MODEL_TYPES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "deepseek_v3", "glm4_moe")
"""Model types whose MTP layer `mtp_head.MtpHead` runs, each backed by a run."""

NO_LAYERS_SEEN = (
    "bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "hrm_text", "llama4_text",
    "longcat_flash", "modernbert-decoder", "roberta", "roberta-prelayernorm", "roc_bert",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose layers, or last hidden state, `drafting.hidden_states` does not find."""

SEVERAL_STREAMS = ("gemma3n_text",)
"""Model types whose layers pass on several hidden states of a token; heads over layers are trained on one."""

LACKS: frozenset[str] = frozenset(
    {
        "device",
        "quantization",
        "quantization-package",
        "library-quantization",
        "library-quantization-device",
        "causal-lm",
        "transformers-version",
        "vision-package",
        "model-family",
        "quantized-experts",
        "quantized-tensor-parallelism",
        "draft-runner",
        "pooling",
        "pooling-model",
        "pooling-multimodal",
        "pooling-remote-code",
        "pooling-combinations",
        "pooling-quantized-experts",
        "pooling-whole-prompts",
        "pooler-config",
        "length-dependent-rope",
        "encoder-decoder",
        "device-count",
        "executor-backend",
        "ray-device",
        "ray-package",
        "tensor-parallel-families",
        "tensor-parallel-sizes",
        "workers-combinations",
        "context-parallel-inner-states",
        "workers-row-by-row",
        "pipeline-parallel-families",
        "pipeline-parallel-layers",
        "data-parallel-deployment",
        "decode-context-parallelism",
        "expert-parallel-families",
        "expert-parallel-ranks",
        "lora-torch-compile",
        "sizes",
        "companion-directories",
        "config-values",
        "memory",
        "weights",
        "speculative-settings",
        "kv-connector-settings",
        "pooler-settings",
        "speculative-method",
        "speculative-hidden-states",
        "speculative-mtp",
        "parallel-drafting",
        "draft-tensor-parallelism",
        "kv-connector",
        "kv-connector-inner-states",
        "speculative-kv-connector",
        "kv-cache-dtype",
        "torch-compile-row-by-row",
        "speculative-row-by-row",
        "kv-connector-row-by-row",
        "dynamo-trace-once",
        "vllm-compile",
    }
)
"""Rule ids of rules/dodona.yaml that veto V1."""


UNSPLIT_SCHEMES = ("w4a16_act_order", "w8a16_act_order", "w4a16_mxfp4", "mixed")
"""Schemes of quantized weights that `tensor_parallel.shard_model` does not split."""


def check_supported(config: EngineConfig, model: ModelInfo, environment: Environment) -> tuple[str, ...]:
    """The features, as in `LACKS`, that this configuration asks for and V1 lacks on this machine."""
    parallel, speculative = config.parallel_config, config.speculative_config
    compilation = config.compilation_config.mode if config.compilation_config else None
    scheme = quantization_scheme(config, model)
    runner_type, task = resolved_runner_type(config, model), pooling_task(config, model)
    found = {
        "device": config.device_config.device == "cuda" and environment.platform != "cuda",
        "causal-lm": runner_type == "generate" and not has_causal_lm(config, model),
        "transformers-version": needs_newer_transformers(config, model, environment) is True,
        "vision-package": lacks_vision_package(config, model, environment) is True,
        "model-family": runner_type == "generate"
        and (model.model_type in UNSERVED or not set(UNSERVED_ARCHITECTURES).isdisjoint(model.architectures)),
        "quantization": quantization_fault(config, model) is not None,
        "quantization-package": lacks_quantization_package(config, model, environment) is True,
        "library-quantization": scheme in LIBRARY_SCHEMES and _exceeds_library(config, model, environment),
        "library-quantization-device": scheme == "w8a8_torchao"
        and resolved_device(config, environment) == "cuda",
        "quantized-experts": has_unread_experts(config, model, environment) is True,
        "quantized-tensor-parallelism": scheme in UNSPLIT_SCHEMES and parallel.tensor_parallel_size > 1,
        "draft-runner": runner_type == "draft",
        "pooling": task is not None and task not in SERVED_TASKS,
        "pooling-model": task in SERVED_TASKS and not has_pooling_model(config, model),
        "pooling-multimodal": runner_type == "pooling" and model.is_multimodal,
        "pooling-remote-code": runner_type == "pooling"
        and model.has_remote_code
        and config.model_config.trust_remote_code,
        "pooling-combinations": runner_type == "pooling" and lacks_combination(config),
        "pooling-whole-prompts": prompt_steps(config, model) == "too_long",
        "pooling-quantized-experts": runner_type == "pooling" and scheme is not None and model.is_moe,
        "pooler-config": has_unused_pooler(config, model) is True,
        "length-dependent-rope": outgrows_rope(config, model)
        and model.rope_type != "longrope"
        and (
            model.rope_type != "dynamic"
            or parallel.world_size > 1
            or has_active_connector(config)
            or compiles(config)
            or is_row_by_row(config, model, environment) is True
        ),
        "encoder-decoder": model.is_encoder_decoder,
        "device-count": exceeds_devices(config, environment),
        "executor-backend": lacks_executor(parallel),
        "ray-device": splits_gpus_by_ray(config, environment),
        "ray-package": lacks_ray(config, environment),
        "tensor-parallel-families": parallel.tensor_parallel_size > 1
        and not set(model.architectures) & set(TENSOR_PARALLEL_FAMILIES),
        "tensor-parallel-sizes": isinstance(uneven_size(config, model), str),
        "workers-combinations": uses_workers(config) and compilation == "STOCK_TORCH_COMPILE",
        "context-parallel-inner-states": parallel.prefill_context_parallel_size > 1 and model.has_inner_state,
        "pipeline-parallel-families": parallel.pipeline_parallel_size > 1
        and not set(model.architectures) & set(PIPELINE_PARALLEL_FAMILIES),
        "pipeline-parallel-layers": fills_stages(config, model) is False,
        "data-parallel-deployment": deploys_replicas_otherwise(parallel),
        "decode-context-parallelism": parallel.decode_context_parallel_size > 1,
        "expert-parallel-families": parallel.enable_expert_parallel
        and parallel.tensor_parallel_size > 1
        and not set(model.architectures) & set(EXPERT_PARALLEL_FAMILIES),
        "expert-parallel-ranks": parallel.enable_expert_parallel and parallel.tensor_parallel_size == 1,
        "lora-torch-compile": config.lora_config is not None and compiles(config),
        "companion-directories": companions_fault(config, model, environment) is not None,
        "memory": memory_fault(config, model, environment) is not None,
        "config-values": config_values_fault(model) is not None,
        "weights": weights_fault(config, model, environment) is not None,
        "sizes": sizes_fault(config, model, environment) is not None,
        "kv-connector-settings": kv_transfer_fault(config) is not None,
        "pooler-settings": pooler_fault(config, model, environment) is not None,
        "speculative-settings": speculation_fault(config, model, environment) is not None,
        "speculative-method": speculative is not None
        and resolved_speculative_method(config) not in SPECULATIVE_METHODS,
        "speculative-hidden-states": _hides_states(resolved_speculative_method(config), model.model_type),
        "speculative-mtp": resolved_speculative_method(config) == "mtp"
        and (model.model_type not in MTP_MODEL_TYPES or scheme is not None),
        "parallel-drafting": speculative is not None
        and speculative.parallel_drafting
        and resolved_speculative_method(config) != "eagle3",
        "draft-tensor-parallelism": speculative is not None
        and (speculative.draft_tensor_parallel_size or 1) > 1,
        "kv-connector": lacks_connector(config),
        "kv-connector-inner-states": has_active_connector(config) and model.has_inner_state,
        "speculative-kv-connector": has_active_connector(config)
        and resolved_speculative_method(config) in ("draft_model", "eagle", "eagle3", "mtp"),
        "kv-cache-dtype": config.cache_config.cache_dtype != "auto",
        "dynamo-trace-once": compilation == "DYNAMO_TRACE_ONCE",
        "vllm-compile": compilation == "VLLM_COMPILE",
    }
    features = [feature for feature, asked in found.items() if asked]
    return (*features, *(need_packing(config) if is_row_by_row(config, model, environment) else ()))


def lacks_of_draft(config: EngineConfig, draft: ModelInfo, *, environment: Environment) -> tuple[str, ...]:
    """What V1 lacks for a draft model, which is whole on one device; `config`: the target's, without
    speculative_config."""
    config = replace(config, parallel_config=ParallelConfig())
    return check_supported(config, draft, environment)


def _exceeds_library(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool:
    """Whether a configuration asks for more than was run with layers that a quantization library computes."""
    return (
        uses_workers(config)
        or config.speculative_config is not None
        or compiles(config)
        or resolved_runner_type(config, model) == "pooling"
        or model.is_moe
        or model.has_inner_state
        or is_row_by_row(config, model, environment) is True
    )


def _hides_states(method: str | None, model_type: str | None) -> bool:
    """Whether a head of this method can't see the hidden states of such a model."""
    if method == "eagle3" and model_type in SEVERAL_STREAMS:
        return True
    return method in ("eagle", "eagle3") and model_type in NO_LAYERS_SEEN


def compiles(config: EngineConfig) -> bool:
    """Whether the model goes through `torch.compile`; its attention stays outside of what is traced."""
    return config.compilation_config is not None and config.compilation_config.mode == "STOCK_TORCH_COMPILE"


def need_packing(config: EngineConfig) -> tuple[str, ...]:
    """The features, as in `LACKS`, of a configuration that asks for what only packed rows have."""
    asked = {
        "torch-compile-row-by-row": compiles(config),
        "speculative-row-by-row": config.speculative_config is not None,
        "workers-row-by-row": config.parallel_config.world_size > 1,
        "kv-connector-row-by-row": has_active_connector(config),
    }
    return tuple(feature for feature, is_asked in asked.items() if is_asked)
