"""What keeps vLLM from making its configuration, in its own words: of the speculation, the quantization, the
length and the runner that were asked for, and of the model's own code.

Each check gives a text, or None where the configuration passes or it isn't known. The rules of the books read
the texts as facts. vLLM checks more than this; what is here is what recorded starts of the releases show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from dodona.oracle.models.known_models import known_model_types
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

_NO_ACTIVATION_ORDER: Final = (0, 29, 0)
"""First release whose recording refuses GPTQ's activation order."""

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
    given: Mapping[str, Any], method: object, model: ModelInfo, draft: ModelInfo | None, registry: Registry
) -> str | None:
    """Why the release can't draft for the model. method: the one that was found."""
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
    if mtp:
        own = {model.model_type, model.raw.get("model_type")}
        if own.isdisjoint(MTP_TYPES) and MTP_CLASSES.isdisjoint(model.architectures):
            return "Unsupported speculative method: 'mtp'"
        return None
    if given.get("model") is None and isinstance(method, str) and method not in _WITHOUT_DRAFT:
        return "num_speculative_tokens was provided but without speculative model"
    if method == "draft_model" and draft is not None and not given.get("use_heterogeneous_vocab"):
        sizes = (model.text.get("vocab_size"), draft.text.get("vocab_size"))
        if all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1]:
            return f"Target and draft model should have the same vocabulary size: {sizes[0]} and {sizes[1]}"
    return None


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
    if stored == "gptq" and (release_number(registry.release) or ()) >= _NO_ACTIVATION_ORDER:
        quantized = model.raw.get("quantization_config") or {}
        if quantized.get("desc_act") and quantized.get("group_size") != -1:
            return "GPTQ group activation ordering (desc_act=True) is no longer supported"
    if not isinstance(asked, str):
        return None
    if stored is None and asked in _NEEDS_CHECKPOINT and model.quant_method is None:
        return f"Cannot find the config file for {asked}"
    if stored in (None, asked) or any({asked, stored} <= family for family in _FAMILIES):
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
        if any(isinstance(value, Mapping) for value in scaling.values()):
            return None
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        factor = scaling.get("factor", 1.0)
        if kind not in _SCALED_ALREADY and isinstance(factor, (int, float)):
            most *= factor
    if asked > most:
        return (
            f"User-specified max_model_len ({asked}) is greater than the derived max_model_len ({int(most)})"
        )
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
