"""Random configurations of vLLM, in the form of recorded cases."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

ARCHITECTURES = (
    "Qwen3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV4ForCausalLM",
    "GlmMoeDsaForCausalLM",
    "GraniteMoeForCausalLM",
    "InklingForCausalLM",
    "InklingForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "LongcatFlashNgramForCausalLM",
    "Step5ForCausalLM",
    "Step5ForConditionalGeneration",
    "FooForCausalLM",
)
METHODS = (
    "ngram",
    "ngram_gpu",
    "eagle",
    "eagle3",
    "mtp",
    "deepseek_mtp",
    "dflash",
    "dspark",
    "medusa",
    "mlp_speculator",
    "suffix",
    "draft_model",
    "custom_class",
    "extract_hidden_states",
    "something_new",
)
DRAFTS = (
    "DFlash2DraftModel",
    "DFlash2BeamDraftModel",
    "LiLiCorrDraftModel",
    "Qwen3XPressModel",
    "DFlashQwen3XPressModel",
    "ParseAuxMTPModel",
    "Qwen3DFlashModel",
)

_SWITCH = (False, True)
_MAYBE = (None, False, True)
_SIZE = (1, 2, 4)

FIELDS: Mapping[str, Sequence[Any]] = {
    "model_config.architectures": (
        *([a] for a in ARCHITECTURES),
        [],
        ["FooForCausalLM", "KimiK3ForConditionalGeneration"],
        ["DeepseekV4ForCausalLM", "FooForCausalLM"],
    ),
    "model_config.architecture": ARCHITECTURES,
    "model_config.runner_type": ("generate", "pooling", "draft"),
    "model_config.is_moe": _SWITCH,
    "model_config.is_quantized": _SWITCH,
    "model_config.has_inner_state": _SWITCH,
    "model_config.is_hybrid": _SWITCH,
    "model_config.is_attention_free": _SWITCH,
    "model_config.is_diffusion": _SWITCH,
    "model_config.is_encoder_decoder": _SWITCH,
    "model_config.is_multimodal_model": _SWITCH,
    "model_config.use_mla": _SWITCH,
    "model_config.enable_return_routed_experts": _SWITCH,
    "model_config.enable_prompt_embeds": _SWITCH,
    "model_config.logprobs_mode": ("raw_logprobs", "raw_logits", "processed_logits", "processed_logprobs"),
    "model_config.logits_processors": (None, [], ["a:B"]),
    "model_config.multimodal_config": (None, {}, {"mm_encoder_only": False}, {"mm_encoder_only": True}),
    "cache_config.kv_sharing_fast_prefill": _SWITCH,
    "cache_config.mamba_cache_mode": ("none", "align", "all"),
    "parallel_config.tensor_parallel_size": _SIZE,
    "parallel_config.pipeline_parallel_size": _SIZE,
    "parallel_config.prefill_context_parallel_size": _SIZE,
    "parallel_config.decode_context_parallel_size": _SIZE,
    "parallel_config.distributed_executor_backend": (None, "mp", "ray", "uni", "external_launcher"),
    "parallel_config.enable_dbo": _SWITCH,
    "parallel_config.ubatch_size": (0, 1, 2, 4),
    "parallel_config.enable_elastic_ep": _SWITCH,
    "parallel_config.enable_batch_sharded_sampling": _MAYBE,
    "scheduler_config.async_scheduling": _MAYBE,
    "compilation_config.mode": (None, "NONE", "STOCK_TORCH_COMPILE", "DYNAMO_TRACE_ONCE", "VLLM_COMPILE"),
    "compilation_config.cudagraph_mode": (
        None,
        "NONE",
        "PIECEWISE",
        "FULL",
        "FULL_DECODE_ONLY",
        "FULL_AND_PIECEWISE",
    ),
    "compilation_config.pass_config": (
        None,
        {},
        {"enable_sp": None},
        {"enable_sp": False},
        {"enable_sp": True},
    ),
    "attention_config.hisparse_config": (None, None, None, {}),
    "speculative_config.method": METHODS,
    "speculative_config.parallel_drafting": _SWITCH,
    "speculative_config.num_speculative_tokens_per_batch_size": (None, [[1, 4, 3]]),
    "speculative_config.enable_adaptive_verification": _SWITCH,
    "speculative_config.use_heterogeneous_vocab": _SWITCH,
    "speculative_config.draft_lm_head_quantization": (None, "fp8"),
}
"""Dotted field → values; the first one is harmless everywhere."""

OPTIONAL = ("lora_config", "ec_transfer_config", "reasoning_config", "watermark_config", "kv_transfer_config")
LAYER_TYPES = (
    None,
    [],
    ["sliding_attention"],
    ["full_attention"],
    ["sliding_attention", "full_attention"],
    ["sliding_attention", "linear_attention"],
)


def random_case(rng: random.Random) -> dict[str, Any]:
    """A case without `expect`: half of them nearly plain, half of them with much that is unusual."""
    unusual = rng.choice((0.03, 0.08, 0.2, 0.5))
    config: dict[str, Any] = {}
    for dotted, values in FIELDS.items():
        section, field = dotted.split(".")
        place = config.setdefault(section, {})
        if rng.random() < 0.03 and dotted not in ("model_config.architecture", "speculative_config.method"):
            continue  # absent: the default
        place[field] = rng.choice(values) if rng.random() < unusual or dotted in _SPREAD else values[0]
    for section in OPTIONAL:
        if rng.random() < 0.9:
            config[section] = {} if rng.random() < unusual else None
    config["speculative_config"]["draft_model_config"] = rng.choice(
        (
            None,
            {"architectures": [rng.choice(DRAFTS)], "hf_config": {"layer_types": rng.choice(LAYER_TYPES)}},
            {"architectures": rng.choice(([], None)), "hf_config": {}},
        )
    )
    if rng.random() < 0.6:
        config["speculative_config"] = None
    for section in (
        "model_config",
        "parallel_config",
        "compilation_config",
        "cache_config",
        "scheduler_config",
    ):
        if rng.random() < 0.02:
            config[section] = None
    return {
        "config": config,
        "env": rng.choice((None, None, None, None, "0", "1", "2", "-1", "00", " 1", "true", "")),
        "has_triton": rng.random() < 0.85,
        "platform": rng.choice(("cuda", "cuda", "rocm", "rocm", "xpu", "cpu", "unspecified")),
        "logitsproc_plugins": rng.random() < 0.1,
    }


_SPREAD = ("model_config.architectures", "model_config.architecture", "speculative_config.method")
