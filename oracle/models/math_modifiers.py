"""The fields of config.json that change the arithmetic of a plain decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "attention_scale": (None,),
    "scale_emb": (None, 1),
    "scale_depth": (None,),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "norm_after": (None, False),
    "parallel_attn": (None, False),
    "use_parallel_residual": (None, False),
    "attn_temperature_tuning": (None, False, 0),
    "no_rope_layers": (None, []),
    "no_rope_layer_interval": (None, 0),
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "attention_chunk_size": (None,),
    "num_kv_shared_layers": (None, 0),
    "add_cross_attention": (None, False),
    "alibi": (None, False),
    "per_layer_config": (None, {}),
    "block_configs": (None, []),
    "position_embedding_type": (None, "absolute", "rope", "rotary"),
}
MATH_MODIFIERS = tuple(sorted(_NEUTRAL))
"""config.json fields that change a decoder's arithmetic when they hold anything but their neutral value."""


def is_neutral(text: Mapping[str, Any], key: str) -> bool:
    """Whether a field of `MATH_MODIFIERS` changes nothing."""
    value = text.get(key)
    if key == "no_rope_layers" and isinstance(value, list):
        return all(value)  # 1 marks a layer with rotary embedding
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[key]
    )
