"""Random tiny models of many families, for comparisons with transformers itself.

Weights are fp32 and drawn wide enough that logits differ clearly from token to token. Windows are smaller
than the prompts that tests use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny_hybrids import ABSENT, HYBRIDS

VOCAB_SIZE = 131
MAX_LENGTH = 256
SLIDING_WINDOW = 12

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_MOE: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

_LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16,
    "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # name: (transformers' model type, configuration beside the common one)
    "llama": ("llama", {}),
    "llama-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": SLIDING_WINDOW}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": (
        "qwen2", {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16, "sliding_window": SLIDING_WINDOW, "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0, "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16, "sliding_window": SLIDING_WINDOW, "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        {"head_dim": 8, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
         "vocab_size_per_layer_input": VOCAB_SIZE, "laurel_rank": 4, "altup_num_inputs": 2,
         "layer_types": ["sliding_attention", "full_attention"] * 3, "activation_sparsity_pattern": [0.0] * 6,
         "sliding_window": SLIDING_WINDOW, "intermediate_size": [48] * 6},
    ),
    "phi3": ("phi3", {}),
    "phi3-sliding": ("phi3", {"sliding_window": SLIDING_WINDOW}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2-moe": (
        "qwen2_moe",
        {**_MOE, "shared_expert_intermediate_size": 16, "use_sliding_window": True, "max_window_layers": 1,
         "sliding_window": SLIDING_WINDOW},
    ),
    "qwen2-moe-full": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 16}),
    "qwen3-moe": ("qwen3_moe", {**_MOE, "head_dim": 16}),
    "gpt-oss": (
        "gpt_oss",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": SLIDING_WINDOW,
         "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "deepseek-v3": ("deepseek_v3", _LATENT),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": SLIDING_WINDOW}),
    "cohere": ("cohere", {}),
    "cohere2": (
        "cohere2",
        {"sliding_window": SLIDING_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "granite": ("granite", {"attention_multiplier": 0.2, "logits_scaling": 2.0}),
    "glm4": ("glm4", {"head_dim": 8}),
    "glm4-moe": (
        "glm4_moe",
        {"head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1,
         "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "smollm3": ("smollm3", {}),
    "starcoder2": ("starcoder2", {"sliding_window": SLIDING_WINDOW}),
    "stablelm": ("stablelm", {}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH, "n_inner": 48}),
    "gpt-neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "llama4": (
        "llama4_text",
        {"head_dim": 8, "attention_chunk_size": SLIDING_WINDOW,
         "layer_types": ["chunked_attention", "full_attention"],
         "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
         "attn_temperature_tuning": False,
         "no_rope_layers": [1, 0]},
    ),
}  # fmt: skip

HEADS_OF_LAYERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mimo": (
        "mimo_v2_flash",
        {"head_dim": 8, "v_head_dim": 6, "sliding_window": SLIDING_WINDOW, "num_hidden_layers": 3,
         "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], **_MOE},
    ),
    "gemma4-global": (
        "gemma4_text",
        {"head_dim": 8, "global_head_dim": 12, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
         "num_hidden_layers": 6, "num_kv_shared_layers": 2, "sliding_window": SLIDING_WINDOW,
         "layer_types": ["sliding_attention", "full_attention"] * 3, "hidden_size_per_layer_input": 8,
         "vocab_size_per_layer_input": VOCAB_SIZE},
    ),
    "laguna": (
        "laguna",
        {**_MOE, "head_dim": 8, "shared_expert_intermediate_size": 16, "sliding_window": SLIDING_WINDOW,
         "num_attention_heads_per_layer": [4, 8], "layer_types": ["full_attention", "sliding_attention"]},
    ),
}  # fmt: skip
"""Layers with different numbers of heads."""

REFUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "deepseek-v32": ("deepseek_v32", {**_LATENT, "v_head_dim": 8, "index_head_dim": 16, "index_n_heads": 2}),
}
"""What runner V1 can't serve."""


def make_model(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A model of the family with random fp32 weights, in evaluation mode; `overrides` change its
    configuration.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model_type, special = {**FAMILIES, **HYBRIDS, **HEADS_OF_LAYERS, **REFUSED}[family]
    config_class = CONFIG_MAPPING[model_type]
    settings = {k: v for k, v in {**_COMMON, **special, **overrides}.items() if v is not ABSENT}
    if model_type == "gpt2":
        names = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        )
        settings = {k: v for k, v in settings.items() if k not in (*names, "max_position_embeddings")}
    config = config_class(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        # Norms and biases start as ones and zeros, which would hide a mix-up of them; sinks and routers
        # likewise.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "sinks" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


class TinyModels:
    """Saves each model once and gives its directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[Any, ...], Path] = {}

    def path(self, family: str, *, seed: int = 0, **overrides: Any) -> Path:
        """Directory with config.json and safetensors of `make_model(family, seed=seed, **overrides)`."""
        key = (family, seed, repr(sorted(overrides.items())))
        if key not in self._made:
            path = self._root / f"{len(self._made)}-{family}"
            model = make_model(family, seed=seed, **overrides)
            # generate() of the reference must not stop at the end-of-sequence id of a random model.
            model.generation_config.eos_token_id = None
            model.save_pretrained(path)
            self._made[key] = path
        return self._made[key]
