"""The features that V1 lacks, and the check of a configuration for them before a model is loaded.

Both are written by hand and don't read the rules. The rule book's vetoes on v1 say the same; a test compares
the two.
"""

from __future__ import annotations

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.facts import (
    has_active_connector,
    has_connector_module,
    outgrows_rope,
    resolved_connector,
    resolved_runner_type,
    resolved_speculative_method,
)
from dodona.oracle.systems.own.quantization import quantization_scheme

KV_CONNECTORS = ("OffloadingConnector", "SharedStorageConnector", "ExampleConnector")
"""The connectors that V1 has."""
SPECULATIVE_METHODS = ("ngram",)
"""Methods of speculative decoding that V1 has a drafter for."""

LACKS: frozenset[str] = frozenset(
    {
        "device",
        "quantization",
        "quantized-experts",
        "inner-state-family",
        "pooling",
        "length-dependent-rope",
        "encoder-decoder",
        "tensor-parallelism",
        "pipeline-parallelism",
        "data-parallelism",
        "prefill-context-parallelism",
        "decode-context-parallelism",
        "expert-parallelism",
        "speculative-method",
        "speculative-inner-state",
        "parallel-drafting-method",
        "draft-tensor-parallelism",
        "unserved-kv-connector",
        "kv-connector-inner-states",
        "kv-cache-dtype",
        "dynamo-trace-once",
        "vllm-compile",
    }
)
"""Rule ids of rules/dodona.yaml that veto V1."""


INNER_STATE_FAMILIES: frozenset[str] = frozenset(
    {
        "bailing_hybrid",
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "lfm3",
        "mamba",
        "mamba2",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "zaya",
    }
)
"""Model types with an inner state whose tokens were compared with transformers' own
(tests/v1/test_hybrids.py)."""


def check_supported(config: EngineConfig, model: ModelInfo, environment: Environment) -> tuple[str, ...]:
    """The features, as in `LACKS`, that this configuration asks for and V1 lacks on this machine."""
    parallel, speculative = config.parallel_config, config.speculative_config
    compilation = config.compilation_config.mode if config.compilation_config else None
    scheme = quantization_scheme(config, model)
    found = {
        "device": config.device_config.device == "cuda" and environment.platform != "cuda",
        "quantization": scheme == "other",
        "quantized-experts": scheme is not None and model.is_moe,
        "inner-state-family": model.has_inner_state and model.model_type not in INNER_STATE_FAMILIES,
        "pooling": resolved_runner_type(config, model) != "generate",
        "length-dependent-rope": outgrows_rope(config, model),
        "encoder-decoder": model.is_encoder_decoder,
        "tensor-parallelism": parallel.tensor_parallel_size > 1,
        "pipeline-parallelism": parallel.pipeline_parallel_size > 1,
        "data-parallelism": parallel.data_parallel_size > 1,
        "prefill-context-parallelism": parallel.prefill_context_parallel_size > 1,
        "decode-context-parallelism": parallel.decode_context_parallel_size > 1,
        "expert-parallelism": parallel.enable_expert_parallel,
        "speculative-method": speculative is not None
        and resolved_speculative_method(config) not in SPECULATIVE_METHODS,
        "speculative-inner-state": speculative is not None and model.has_inner_state,
        "parallel-drafting-method": speculative is not None
        and speculative.parallel_drafting
        and resolved_speculative_method(config) != "eagle3",
        "draft-tensor-parallelism": speculative is not None
        and (speculative.draft_tensor_parallel_size or 1) > 1,
        "unserved-kv-connector": has_active_connector(config)
        and (resolved_connector(config) not in KV_CONNECTORS or has_connector_module(config)),
        "kv-connector-inner-states": has_active_connector(config) and model.has_inner_state,
        "kv-cache-dtype": config.cache_config.cache_dtype != "auto",
        "dynamo-trace-once": compilation == "DYNAMO_TRACE_ONCE",
        "vllm-compile": compilation == "VLLM_COMPILE",
    }
    return tuple(feature for feature, asked in found.items() if asked)


def compiles(config: EngineConfig) -> bool:
    """Whether the model goes through `torch.compile`; its attention stays outside of what is traced."""
    return config.compilation_config is not None and config.compilation_config.mode == "STOCK_TORCH_COMPILE"
