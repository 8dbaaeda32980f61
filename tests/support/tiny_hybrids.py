"""Configurations of families whose layers keep an inner state, for `tests.support.tiny_models.make_model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = ...
"""In place of a value: the family's configuration has no such field."""

_NO_ATTENTION: Mapping[str, Any] = dict.fromkeys(
    ("num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings"), ABSENT
)
_MAMBA2: Mapping[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_chunk_size": 8,
}  # fmt: skip
_DELTA_NET: Mapping[str, Any] = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MOE: Mapping[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
_LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "num_local_experts": 4, "moe_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
}  # fmt: skip

HYBRIDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # name: (transformers' model type, configuration beside the common one)
    "mamba": ("mamba", {**_NO_ATTENTION, "state_size": 8, "tie_word_embeddings": True}),
    "falcon-mamba": ("falcon_mamba", {**_NO_ATTENTION, "state_size": 8, "tie_word_embeddings": True}),
    "mamba2": (
        "mamba2",
        {**_NO_ATTENTION, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "falcon-h1": ("falcon_h1", {**_MAMBA2, "mamba_d_ssm": 64}),
    "bamba": ("bamba", {**_MAMBA2, "attn_layer_indices": [1]}),
    "jamba": (
        "jamba",
        {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
         "mamba_d_state": 8},
    ),
    "granite-hybrid": (
        "granitemoehybrid",
        {**_MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16,
         "layer_types": ["linear_attention", "full_attention"], "position_embedding_type": "rope"},
    ),
    "lfm2": (
        "lfm2",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
         "block_auto_adjust_ff_dim": False},
    ),
    "lfm2-moe": (
        "lfm2_moe",
        {"layer_types": ["conv", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 16, "num_dense_layers": 1},
    ),
    "lfm3": (
        "lfm3",
        {"num_hidden_layers": 3, "layer_types": ["conv", "sliding_attention", "full_attention"],
         "head_dim": 16, "sliding_window": 12, "conv_L_cache": 5},
    ),
    "qwen3-next": ("qwen3_next", {**_DELTA_NET, **_MOE, "head_dim": 16}),
    "qwen3.5": ("qwen3_5_text", {**_DELTA_NET, "head_dim": 16}),
    "qwen3.5-moe": ("qwen3_5_moe_text", {**_DELTA_NET, **_MOE, "head_dim": 16}),
    "olmo-hybrid": ("olmo_hybrid", {**_DELTA_NET, "linear_num_key_heads": 4}),
    "kimi-linear": (
        "kimi_linear",
        {**_LATENT, "linear_head_dim": 8, "linear_num_heads": 4, "linear_conv_kernel_dim": 4},
    ),
    "bailing-hybrid": ("bailing_hybrid", {**_LATENT, "head_dim": 8, "short_conv_kernel_size": 4}),
    "zaya": (
        "zaya",
        {**_MOE, "num_experts_per_tok": 1, "head_dim": 16, "router_hidden_size": 16},
    ),
}  # fmt: skip
