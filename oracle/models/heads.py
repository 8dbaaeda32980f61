"""Attention heads, of which layers may have different numbers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from dodona.oracle.models.config_fields import Fields, Size

_LISTED: Final = ("laguna",)
"""Model types whose layers have `num_attention_heads_per_layer` where the file gives it."""
_GLOBAL: Final = ("gemma4_text", "gemma4_unified_text")
"""Model types whose full layers have `num_global_key_value_heads` where their keys are their values."""
_DOUBLED: Final = ("mimo_v2_flash",)
"""Model types whose sliding layers have twice `num_key_value_heads`."""

WHOLE_ATTENTION: Final = frozenset(
    {
        "afmoe", "axk1", "bailing_hybrid", "deepseek_v3", "flex_olmo", "flint", "granitemoe",
        "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "jamba", "kimi_linear", "lfm2_moe",
        "minimax_m2", "minimax_m3_vl_text", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "phimoe", "sarvam_mla",
        "youtu",
    }
)  # fmt: skip
"""Model types whose attention layers transformers' plan leaves whole on every rank: their heads need not
divide."""


def query_heads(get: Fields, model_type: str) -> tuple[Size, ...]:
    """The numbers of query heads that layers have; empty where the file and its family do not say. Raises
    UnreadableField."""
    listed = get.of_layers("num_attention_heads_per_layer") if model_type in _LISTED else ()
    return listed or get.of_layers("num_attention_heads")


def kv_heads(get: Fields, model_type: str, layer_kinds: Collection[str]) -> tuple[Size, ...]:
    """The numbers of key/value heads that layers have; without one of their own, that of their query heads.
    Raises UnreadableField."""
    found = get.of_layers("num_key_value_heads") or query_heads(get, model_type)
    if model_type in _GLOBAL and get.flag("attention_k_eq_v") and "per_layer_config" not in get.text:
        found += get.of_layers("num_global_key_value_heads")
    if model_type in _DOUBLED and "sliding_attention" in layer_kinds:
        found += tuple(Size(f"{field} of sliding layers", 2 * heads) for field, heads in found)
    return found
