"""What keeps vLLM from making its configuration, in its own words: of the speculation, the quantization, the
length and the runner that were asked for, and of the model's own code.

Each check gives a text, or None where the configuration passes or it isn't known. The rules of the books read
the texts as facts. vLLM checks more than this; what is here is what recorded starts of the releases show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.known_models import known_architectures, known_model_types
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.vllm.model_classes import Registry
from dodona.oracle.systems.vllm.releases import release_number

_WITHOUT_DRAFT: Final = frozenset(
    {"ngram", "ngram_gpu", "suffix", "custom_class", "extract_hidden_states", "dspark"}
)
"""Methods that need no draft model of their own."""

MTP_TYPES: Final = frozenset(
    [
        "bailing_hybrid",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "dots3_note",
        "ernie4_5_moe",
        "exaone4_5",
        "exaone_moe",
        "gemma4_assistant",
        "gemma4_unified_assistant",
        "glm5_next",
        "glm_moe_dsa",
        "hy_v3",
        "hy_v4",
        "inkling_mm_model",
        "inkling_model",
        "intern_s2_preview",
        "interns2_mobius",
        "kimi_k3",
        "longcat_flash",
        "minimax_m3_vl",
        "nemotron_h",
        "nemotron_h_puzzle",
        "pangu_ultra_moe",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_next",
        "qwen4_exp",
        "qwen4_exp_text",
        "step3p5",
        "step3p7",
        "step5",
        "step5_vl",
    ]
)
"""Model types that vLLM drafts for by multi-token prediction."""

MTP_CLASSES: Final = frozenset(
    [
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "BailingMoeV3VLForConditionalGeneration",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmOcrForConditionalGeneration",
        "MiMoForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiMoV2ForCausalLM",
        "MiMoV2OmniForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
        "NemotronH_Super_Omni_Reasoning_V3",
        "Step3p5ForCausalLM",
        "Step3p7ForConditionalGeneration",
        "Step5ForCausalLM",
        "Step5ForConditionalGeneration",
    ]
)
"""Model classes that it does so for, whatever their type."""

_FAMILIES: Final = (
    frozenset({"awq", "awq_marlin", "auto_awq", "marlin", "moe_wna16", "inc", "humming"}),
    frozenset({"gptq", "gptq_marlin", "auto_gptq", "marlin", "moe_wna16", "inc", "humming"}),
    frozenset({"mxfp4", "gpt_oss_mxfp4", "humming"}),
    frozenset({"fp8", "deepseek_v4_fp8", "humming"}),
    frozenset({"modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8", "humming"}),
    frozenset({"compressed-tensors", "humming"}),
)
"""Quantization methods that take one another's checkpoints."""

_NEEDS_CHECKPOINT: Final = frozenset(
    {
        "auto_awq",
        "auto_gptq",
        "awq",
        "awq_marlin",
        "compressed-tensors",
        "gptq",
        "gptq_marlin",
        "modelopt",
        "modelopt_fp4",
    }
)
"""Methods that serve only checkpoints that are stored so."""

_NO_ACTIVATION_ORDER: Final = (0, 30, 0)
"""First release that refuses GPTQ's activation order within groups."""

_DRAFT_ON_ONE_STAGE: Final = (0, 30, 0)
"""First release whose draft models aren't split among pipeline stages."""

_MTP_IN_STAGES: Final = frozenset(
    {
        "BailingMoeV3ForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmOcrForConditionalGeneration",
        "nemotron_h",
        "nemotron_h_puzzle",
    }
)
"""Model types and classes whose own draft layers can be split among pipeline stages, before that."""

AUXILIARY_OUTPUT: Final = (0, 31, 0)
"""First release that returns routed experts as an auxiliary output, by V2 alone."""

_ROUTED_WITHIN_ONE_CONTEXT: Final = (0, 28, 0)
"""First release that checks routed experts against context parallelism."""

_MOVES_NO_ROUTED_EXPERTS: Final = frozenset(
    {
        "MoRIIOConnector",
        "MooncakeConnector",
        "NixlConnector",
        "NixlPullConnector",
        "NixlPushConnector",
    }
)
"""KV connectors that auxiliary output does not go with."""

_NO_HALF_PRECISION: Final = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Model types that no release serves in float16."""
_NO_HALF_PRECISION_BEFORE: Final[Mapping[str, tuple[int, int, int]]] = {"plamo2": (0, 28, 0)}
"""And the ones of earlier releases."""

_LENGTHS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_SCALED_ALREADY: Final = frozenset(
    {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "default", "mrope"}
)


def speculation_refusal(
    given: Mapping[str, Any],
    method: object,
    model: ModelInfo,
    draft: ModelInfo | None,
    registry: Registry,
    stages: object = 1,
) -> str | None:
    """Why the release can't draft for the model. method: the one that was found. stages: of the pipeline."""
    named = given.get("method")
    if isinstance(named, str) and registry.speculation and named not in registry.speculation:
        return f"'{named}' is no speculative method of vLLM {registry.release}"
    mtp = method == "mtp" and given.get("model") is None
    if given.get("num_speculative_tokens") is None:
        predicted = draft is not None and ("n_predict" in draft.raw or draft.raw.get("num_lookahead_tokens"))
        if not predicted and (draft is not None or given.get("model") is None):
            return (
                "num_speculative_tokens must be provided with speculative model unless the draft model "
                "config contains an n_predict parameter"
            )
        return None
    if mtp and not _predicts_tokens(model, registry):
        return "Unsupported speculative method: 'mtp'"
    if stages != 1 and isinstance(stages, int) and is_before(registry, _DRAFT_ON_ONE_STAGE):
        whole = mtp and _MTP_IN_STAGES.isdisjoint({model.raw.get("model_type"), *model.architectures})
        for name in () if draft is None else draft.architectures:
            kind = registry.find(name)
            whole = whole or (kind is not None and not kind.supports_pp)
        if whole:
            return "Pipeline parallelism is not supported for the draft model"
    if mtp:
        return _layers_refusal(given, model)
    if given.get("model") is None and isinstance(method, str) and method not in _WITHOUT_DRAFT:
        return "num_speculative_tokens was provided but without speculative model"
    if method in ("draft_model", "medusa", "mlp_speculator") and draft is not None and registry.is_recorded:
        named = draft.architectures
        if named and all(
            registry.find(name) is None and name not in registry.unread and name not in known_architectures()
            for name in named
        ):
            return f"Model architectures {list(named)} are not supported for now"
    if method == "draft_model" and draft is not None and not given.get("use_heterogeneous_vocab"):
        sizes = (model.text.get("vocab_size"), draft.text.get("vocab_size"))
        if all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1]:
            return f"Target and draft model should have the same vocabulary size: {sizes[0]} and {sizes[1]}"
    return None


def _layers_refusal(given: Mapping[str, Any], model: ModelInfo) -> str | None:
    """Why as many tokens can't be drafted with the model's layers for it."""
    layers, tokens = model.text.get("num_nextn_predict_layers"), given.get("num_speculative_tokens")
    other = "mtp_num_hidden_layers" in model.text or any(
        name.startswith("MiMoV2") for name in model.architectures
    )
    if other or not isinstance(layers, int) or not isinstance(tokens, int) or tokens <= layers:
        return None
    if layers == 0:
        return "integer modulo by zero (num_nextn_predict_layers is 0)"
    return (
        f"num_speculative_tokens:{tokens} must be divisible by n_predict={layers}"
        if tokens % layers
        else None
    )


def _predicts_tokens(model: ModelInfo, registry: Registry) -> bool:
    """Whether the release can draft with the model's own multi-token prediction."""
    known = registry.drafts_for
    types = {str(model.raw.get("model_type")), model.model_type} & MTP_TYPES
    named = MTP_CLASSES.intersection(model.architectures)
    if known:
        types, named = types & known, named & known
    if types <= {"nemotron_h", "nemotron_h_puzzle"} and not named:
        layers = model.text.get("num_nextn_predict_layers")
        return bool(types) and isinstance(layers, int) and layers > 0
    return True


_BFLOAT16_SINCE: Final = 80
"""Compute capability from which on CUDA devices compute in bfloat16; `auto` takes float16 before it."""


def dtype_refusal(
    given: Mapping[str, Any], model: ModelInfo, registry: Registry, environment: Environment
) -> str | None:
    """Why the model isn't served in the `--dtype` that is asked for."""
    capability = environment.compute_capability
    if given.get("dtype") == "bfloat16" and capability is not None and capability < _BFLOAT16_SINCE:
        return (
            "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. "
            f"Your GPU has compute capability {capability / 10}"
        )
    kind = model.raw.get("model_type")
    until = _NO_HALF_PRECISION_BEFORE.get(str(kind))
    refused = kind in _NO_HALF_PRECISION or (until is not None and is_before(registry, until))
    if given.get("dtype") in ("float16", "half") and refused:
        return f"The model type '{kind}' does not support float16"
    if given.get("dtype") in ("float16", "half") and model.quant_method == "mxfp4":
        return "torch.float16 is not supported for quantization method mxfp4"
    return None


def routed_experts_refusal(sections: Mapping[str, Any], registry: Registry) -> str | None:
    """Why routed experts can't be returned with the rest. sections: the completed configuration."""
    model, parallel, cache = (sections[f"{name}_config"] for name in ("model", "parallel", "cache"))
    if not model.get("enable_return_routed_experts"):
        return None
    connector = (sections.get("kv_transfer_config") or {}).get("kv_connector")
    auxiliary = not is_before(registry, AUXILIARY_OUTPUT)
    if auxiliary:
        if model["runner_type"] != "generate":
            return "AuxOutput Connector only supports generate runners"
        if not model["is_moe"]:
            return "AuxOutput Connector only supports MoE models"
        if cache["enable_prefix_caching"] is False:
            return "AuxOutput Connector requires prefix caching"
    flag = "--enable-return-routed-experts is incompatible with"
    if auxiliary and (sections.get("speculative_config") or {}).get("enable_adaptive_verification"):
        return f"{flag} adaptive speculative verification"
    if (parallel.get("pipeline_parallel_size") or 1) != 1:
        return f"{flag} pipeline parallelism (PP > 1)"
    context = [parallel.get(f"{name}_context_parallel_size") or 1 for name in ("decode", "prefill")]
    if context != [1, 1] and not is_before(registry, _ROUTED_WITHIN_ONE_CONTEXT):
        return f"{flag} context parallelism (DCP > 1 or PCP > 1)"
    if connector is not None and (not auxiliary or connector in _MOVES_NO_ROUTED_EXPERTS):
        return f"{flag} {connector}"
    return None


def parallelism_refusal(parallel: Mapping[str, Any]) -> str | None:
    """Why an elastic number of expert-parallel devices doesn't go with the rest."""
    if not parallel.get("enable_elastic_ep"):
        return None
    if not parallel.get("enable_eplb"):
        return "Elastic EP is only supported with enable_eplb=True"
    stages = parallel.get("pipeline_parallel_size") or 1
    return None if stages == 1 else f"Elastic EP is not supported with pipeline parallelism ({stages})"


def is_before(registry: Registry, release: tuple[int, int, int]) -> bool:
    """Whether a registry's release is older than another."""
    return (release_number(registry.release) or release) < release


def quantization_refusal(given: Mapping[str, Any], model: ModelInfo, registry: Registry) -> str | None:
    """Why the release can't quantize the model as `--quantization` asks, or can't read how it is stored."""
    asked = given.get("quantization")
    stored = model.quant_method if model.quant_method != "unspecified" else None
    known = registry.quantization
    if not known:
        return None
    if isinstance(asked, str) and asked not in known:
        return f"Unknown quantization method: {asked}"
    if asked is None and stored is not None and stored not in known and stored.replace("_", "-") not in known:
        return f"Unknown quantization method: {stored}"
    if stored == "gptq" and not is_before(registry, _NO_ACTIVATION_ORDER):
        quantized = model.raw.get("quantization_config") or {}
        if quantized.get("desc_act") and quantized.get("group_size") != -1:
            return "GPTQ group activation ordering (desc_act=True) is no longer supported"
    if not isinstance(asked, str):
        return None
    if stored is None and asked in _NEEDS_CHECKPOINT and model.quant_method is None:
        return f"Cannot find the config file for {asked}"
    # how ModelOpt stored a checkpoint overrides what is asked for
    overrides = stored is not None and stored.startswith("modelopt")
    if overrides or stored in (None, asked) or any({asked, stored} <= family for family in _FAMILIES):
        return None
    return (
        f"Quantization method specified in the model config ({stored}) does not match the quantization "
        f"method specified in the `quantization` argument ({asked})"
    )


def length_refusal(given: Mapping[str, Any], model: ModelInfo) -> str | None:
    """Why `--max-model-len` is longer than the model allows."""
    asked = readable_length(given.get("max_model_len"))
    lengths = [value for name in _LENGTHS if isinstance(value := model.text.get(name), int)]
    if asked is None or not lengths:
        return None
    most: float = min(lengths)
    own = model.text.get("model_max_length")
    if isinstance(own, int):
        most = own
    scaling = model.text.get("rope_scaling") or model.text.get("rope_parameters") or {}
    if isinstance(scaling, Mapping) and "gemma3" not in str(model.raw.get("model_type")):
        nested = [value for value in scaling.values() if isinstance(value, Mapping)]
        for one in nested or [scaling]:
            kind = one.get("rope_type", one.get("type", "default"))
            if kind in _SCALED_ALREADY:
                continue
            if nested:
                return None
            factor = one.get("factor", 1.0)
            most *= factor if isinstance(factor, (int, float)) else 1.0
    if asked > most:
        return (
            f"User-specified max_model_len ({asked}) is greater than the derived max_model_len ({int(most)})"
        )
    return None


def prompt_embeds_refusal(given: Mapping[str, Any], model: ModelInfo) -> str | None:
    """Why prompts of the model can't be embeddings; releases before 0.29.0 don't look."""
    if given.get("enable_prompt_embeds") and model.is_encoder_decoder:
        return "--enable-prompt-embeds is not supported with encoder-decoder models."
    return None


def readable_length(given: object) -> int | None:
    """Tokens of "4096", "8k" (1000) or "8K" (1024); None for "auto", -1 and what is none of these."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(given))
    if found is None:
        return None
    unit = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
    return int(float(found[1]) * unit)


def code_refusal(given: Mapping[str, Any], model: ModelInfo, registry: Registry) -> str | None:
    """Why config.json can't be read without the model's own code."""
    kind = model.raw.get("model_type")
    if given.get("trust_remote_code") or not registry.config_types or not isinstance(kind, str):
        return None
    if kind in registry.config_types or kind in known_model_types():
        return None
    code = model.raw.get("auto_map")
    if isinstance(code, Mapping) and "AutoConfig" in code:
        return "The repository contains custom code which must be executed to correctly load the model"
    return None


def refused_fields(sections: Mapping[str, Any], registry: Registry) -> list[str]:
    """Fields of JSON arguments that the release's sections don't have, or that must be given and are not."""
    found = []
    for path, fields in registry.sections.items():
        given: Any = sections
        for part in path.split("."):
            given = given.get(part) if isinstance(given, Mapping) else None
        if isinstance(given, Mapping):
            known = {field.removesuffix("!") for field in fields}
            flag = (
                "--" + path.replace("_", "-").split(".")[0] + path.partition(".")[1] + path.partition(".")[2]
            )
            found += [f"{flag}.{name}" for name in given if name not in known]
            needed = [field[:-1] for field in fields if field.endswith("!")]
            found += [f"{flag} without {name}" for name in needed if name not in given]
    transfer = sections.get("kv_transfer_config") or {}
    connector = transfer.get("kv_connector")
    own = transfer.get("kv_connector_module_path") is not None
    if (
        isinstance(connector, str)
        and registry.connectors
        and not own
        and connector not in registry.connectors
    ):
        found.append(f"--kv-transfer-config.kv_connector {connector}")
    return found


def runner_refusal(given: Mapping[str, Any], generates: bool | None, pools: bool | None) -> str | None:
    """Why the model's class doesn't do what `--runner` or `--convert` asks. None: not known."""
    runner, convert = given.get("runner"), given.get("convert")
    if generates is None or pools is None:
        return None
    if runner in ("generate", "draft") and pools and not generates:
        return f"Embedding models do not support `--runner {runner}`"
    if runner == "generate" and not generates and convert in (None, "auto"):
        return "This model does not support `--runner generate`"
    if runner == "pooling" and convert == "none" and not pools:
        return "This model does not support `--runner pooling`"
    return None
