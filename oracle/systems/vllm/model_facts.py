"""What vLLM knows of a model: from its registry of classes and from config.json, as its own properties say.

These are vLLM's facts, which differ from transformers': a class decides what a model is, and config.json's
fields count under the names that vLLM looks for.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.models.known_models import known_architectures
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.vllm.model_classes import (
    SUFFIXES,
    ModelClass,
    Registry,
    architecture_of,
    cannot_be_wrapped,
)
from dodona.oracle.systems.vllm.startup_checks import runner_refusal

KV_HEADS: Final = (
    "n_head_kv",
    "num_kv_heads",
    "num_key_value_heads",
    "multi_query_group_num",
    "num_attention_groups",
)
"""Names of the number of KV heads; the first that is there counts."""

EXPERTS: Final = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
"""Names of the number of experts; the first that is there counts."""

MLA_TYPES: Final = frozenset(
    {
        "AXK1",
        "axk1",
        "bailing_hybrid",
        "bailing_hybrid_mtp",
        "bailing_hybrid_v3_mtp",
        "deepseek_mtp",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "dots3_note",
        "glm4_moe_lite",
        "glm4_moe_lite_mtp",
        "glm5_next",
        "glm5_next_text",
        "glm_moe_dsa",
        "hy_v4",
        "hy_v4_mtp",
        "k3_dspark",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "pangu_ultra_moe",
        "pangu_ultra_moe_mtp",
    }
)
"""Model types that vLLM serves with multi-head latent attention, where they have `kv_lora_rank`."""

_ATTENTION_ONLY: Final = frozenset({"attention", "full_attention"})


def model_section(given: Mapping[str, Any], model: ModelInfo, registry: Registry) -> Mapping[str, Any]:
    """The fields of vLLM's `model_config` that a model decides; UNKNOWN where neither the registry nor
    config.json tells.

    given: the section as it was written. registry: that of the release.
    """
    asked = (given.get("runner"), given.get("convert"), given.get("model_impl"))
    return _section(model, registry, *(None if value is None else str(value) for value in asked))


@functools.lru_cache(maxsize=256)
def _section(
    model: ModelInfo, registry: Registry, runner: str | None, convert: str | None, model_impl: str | None
) -> Mapping[str, Any]:
    # a ModelInfo is kept as long as its files do not change, and is compared by identity
    given = {"runner": runner, "convert": convert, "model_impl": model_impl}
    named = architectures_of(model)
    own = given.get("model_impl") in (None, "auto", "vllm")
    kind = _class(named, registry) if own else None
    unread = next((name for name in named if name in registry.unread), None)
    if kind is not None:
        served = _served(named, registry)
    else:
        served = unread if unread is not None and own else _wrapper(given, model, named)
    experts = num_experts(model)
    fields: dict[str, Any] = {
        "architectures": list(named),
        "architecture": served,
        "runner_type": _runner_type(given, model, named, registry),
        "is_supported": _is_supported(given, model, named, registry),
        "is_moe": experts > 0,
        "is_quantized": _is_quantized(model),
        "is_diffusion": model.raw.get("canvas_length") is not None,
        "is_encoder_decoder": model.is_encoder_decoder,
        "use_mla": _use_mla(model),
        "total_num_attention_heads": _first(model, ("num_attention_heads",), 0),
    }
    fields["total_num_kv_heads"] = _kv_heads(model, fields["total_num_attention_heads"])
    generates, pools = (None, None) if kind is None else (kind.generates, kind.pools)
    fields["runner_refusal"] = runner_refusal(given, generates, pools)
    kind = kind or registry.classes.get(served)
    if kind is None:
        fields |= dict.fromkeys(
            (
                "has_inner_state",
                "is_hybrid",
                "is_attention_free",
                "is_multimodal_model",
                "is_pp_supported",
                "is_lora_supported",
            ),
            UNKNOWN,
        )
    else:
        fields |= {
            "has_inner_state": kind.has_inner_state,
            "is_hybrid": kind.is_hybrid and not _only_attention(model),
            "is_attention_free": kind.is_attention_free,
            "is_multimodal_model": kind.is_multimodal,
            "is_pp_supported": kind.supports_pp,
            "is_lora_supported": kind.supports_lora,
        }
    return MappingProxyType(fields)


def architectures_of(model: ModelInfo) -> tuple[str, ...]:
    """The classes that config.json names; where it names none, the one that its model type stands for."""
    if model.architectures:
        return model.architectures
    own = model.raw.get("model_type")
    found = architecture_of(own) if isinstance(own, str) else None
    return () if found is None else (found,)


def num_experts(model: ModelInfo) -> int:
    """The number of experts under the names that vLLM looks for; 0 where it finds none."""
    value = _first(model, EXPERTS, 0)
    if not value:
        blocks = model.text.get("block_configs")
        counts = [
            block.get("n_routed_experts", 0)
            for block in (blocks if isinstance(blocks, list) else ())
            if isinstance(block, Mapping) and block.get("block_type") == "moe"
        ]
        value = max((count for count in counts if isinstance(count, int)), default=0)
    return value


def _class(named: Sequence[str], registry: Registry) -> ModelClass | None:
    return next((found for name in named if (found := registry.find(name)) is not None), None)


def _served(named: Sequence[str], registry: Registry) -> str:
    return next(name for name in named if registry.find(name) is not None)


def _wrapper(given: Mapping[str, Any], model: ModelInfo, named: Sequence[str]) -> str:
    """vLLM's class around a class of transformers."""
    nested = any(isinstance(model.raw.get(key), Mapping) for key in ("text_config", "llm_config"))
    name = "Transformers" + ("MultiModal" if nested else "") + ("MoE" if num_experts(model) else "")
    runner, convert = next(
        ((its, task) for suffix, its, task in SUFFIXES if named and named[0].endswith(suffix)), (None, None)
    )
    if given.get("runner") not in (None, "auto"):
        runner = given["runner"]
    if runner == "pooling" and convert == "embed":
        return name + "EmbeddingModel"
    return name + (
        "ForSequenceClassification" if runner == "pooling" and convert == "classify" else "ForCausalLM"
    )


def _runner_type(
    given: Mapping[str, Any], model: ModelInfo, named: Sequence[str], registry: Registry
) -> FactValue:
    runner, convert = given.get("runner"), given.get("convert")
    if runner not in (None, "auto"):
        return str(runner)
    if convert not in (None, "auto", "none") or "Pooling" in model.modules:
        return "pooling"
    kind = _class(named, registry)
    for name in named:
        if name in registry.classes and kind is not None and (kind.pools or kind.generates):
            return "pooling" if kind.pools else "generate"
        for suffix, its_runner, _ in SUFFIXES:
            if name.endswith(suffix):
                return its_runner
    return "generate"


def _is_supported(
    given: Mapping[str, Any], model: ModelInfo, named: Sequence[str], registry: Registry
) -> FactValue:
    """Whether the release has a class for the model. UNKNOWN where transformers or the model itself may."""
    known = _class(named, registry) is not None or not registry.unread.isdisjoint(named)
    if known and given.get("model_impl") in (None, "auto", "vllm"):
        return True
    if not named:
        return False
    wrapped = any(name in known_architectures() for name in named)
    if cannot_be_wrapped(str(model.raw.get("model_type")), registry.release):
        wrapped = False
    code = model.raw.get("auto_map")
    own_code = isinstance(code, Mapping) and any(name.startswith("AutoModel") for name in code)
    if registry.gone.issuperset(named) and not wrapped:
        return False
    other = given.get("model_impl") == "terratorch" or not registry.is_recorded
    return UNKNOWN if wrapped or own_code or other else False


def _is_quantized(model: ModelInfo) -> bool:
    companion = os.path.join(os.path.dirname(model.file), "hf_quant_config.json")
    return model.raw.get("quantization_config") is not None or os.path.isfile(companion)


def _use_mla(model: ModelInfo) -> bool:
    causal = model.text.get("is_causal", True)
    return model.model_type in MLA_TYPES and model.text.get("kv_lora_rank") is not None and bool(causal)


def _only_attention(model: ModelInfo) -> bool:
    """Whether the file lists each layer's kind, and all of them are attention."""
    kinds = model.raw.get("layer_types")
    return isinstance(kinds, list) and bool(kinds) and set(kinds) <= _ATTENTION_ONLY


def _kv_heads(model: ModelInfo, heads: int) -> int:
    if model.model_type in ("mamba", "falcon_mamba"):
        return 0
    falcon = model.model_type in ("falcon", "RefinedWeb", "RefinedWebModel")
    if falcon and model.text.get("multi_query") and not model.text.get("new_decoder_architecture"):
        return 1
    if model.model_type == "gpt_bigcode":
        # transformers' configuration class adds the field
        return 1 if model.text.get("multi_query", True) else heads
    if model.model_type == "dbrx":
        attention = model.text.get("attn_config")
        found = attention.get("kv_n_heads") if isinstance(attention, Mapping) else None
        return found if isinstance(found, int) else heads
    return _first(model, KV_HEADS, heads)


def _first(model: ModelInfo, names: Sequence[str], default: int) -> int:
    """The first of the fields that is there, as a number: of a list, its first item."""
    for name in names:
        value = model.text.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default
