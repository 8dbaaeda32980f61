"""A tiny configuration with random weights for every causal language model type that transformers ships.

Sizes are set by the names of a configuration class's fields, and by `SPECIAL` where a family needs more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

VOCAB_SIZE = 131
MAX_LENGTH = 256
LAYERS = 2
MAX_PARAMETERS = 40_000_000
TOKENS: Mapping[str, int] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}

# ruff: noqa: E501
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input", "n_vocab"), VOCAB_SIZE),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim_model", "emb_dim", "embedding_size", "word_embed_proj_dim",
         "attention_hidden_size", "text_embed_dim", "embedding_dim"),
        32,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_inner", "dim_ff",
         "dff", "ffn_hidden_size", "feed_forward_size", "intermediate_size_mlp", "shared_intermediate_size",
         "mlp_hidden_size", "dense_intermediate_size"),
        48,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "moe_shared_expert_intermediate_size", "moe_ffn_hidden_size"),
        16,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
         "num_decoder_layers", "num_encoder_layers", "num_blocks"),
        LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
         "decoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "d_kv", "d_head", "attention_head_size", "swa_head_dim", "global_head_dim", "kv_channels",
                     "attention_head_dim"), 8),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length",
         "max_target_positions", "max_source_positions", "context_length"),
        MAX_LENGTH,
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("index_head_dim",), 16),
    **dict.fromkeys(("index_n_heads", "index_topk"), 8),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "sliding_window_size",
                     "attention_window_size", "local_attention_window_len", "window_size"), 12),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_n_heads", "mamba_d_head", "mamba_num_heads",
         "mamba_head_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "o_lora_rank",
         "hc_lowrank", "hidden_size_global", "router_hidden_size", "hidden_size_per_layer_input", "laurel_rank", "mamba_dt_rank"),
        8,
    ),
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads", "o_groups"), 2),
    **dict.fromkeys(("lru_width", "input_embedding_size", "output_embedding_size"), 32),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "pronunciation_vocab_size",
                     "shape_vocab_size", "image_size"), 16),
    **dict.fromkeys(("encoder_hash_byte_group_vocab",), 64),
    "initializer_range": 0.25,
}  # fmt: skip
"""Field name → tiny value, for fields that a configuration class has and whose default is a number."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_AXES = {**_ROPE, "mrope_section": [2, 1, 1]}
_DECODER = {"is_decoder": True}
_LATENT = {"num_key_value_heads": 4}
_DOTS3 = {
    "head_dim": 16,
    "num_key_value_heads": 4,
    "layer_types": ["indexed_attention", "sliding_attention"],
    "per_layer_config": {1: {"num_attention_heads": 2, "num_key_value_heads": 2, "v_head_dim": 16}},
}
_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 32,
    "split_ngram_parts": 2,
}

SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bert": _DECODER, "bert-generation": _DECODER, "big_bird": {**_DECODER, "attention_type": "original_full"},
    "camembert": _DECODER, "data2vec-text": _DECODER, "electra": _DECODER, "ernie": _DECODER,
    "megatron-bert": _DECODER, "rembert": _DECODER, "roberta": _DECODER, "roberta-prelayernorm": _DECODER,
    "roc_bert": _DECODER, "roformer": _DECODER, "xlm-roberta": _DECODER, "xlm-roberta-xl": _DECODER,
    "xmod": {**_DECODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4,
                       "model_max_length": MAX_LENGTH, "mlp_layer_types": ["dense", "sparse"]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _AXES, "sliding_attention": _AXES}},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v4": {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
                    "mlp_layer_types": ["hash_moe", "moe"], "qk_rope_head_dim": 4,
                    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
                     "youtu", "hy_v4", "longcat_flash"), _LATENT),
    "kimi_linear": {"num_key_value_heads": 4, "model_max_length": MAX_LENGTH},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "codegen": {"rotary_dim": 4}, "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "moshi": {"audio_vocab_size": 64, "sliding_window": MAX_LENGTH},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 16},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "intermediate_size": 48},
    "hunyuan_v1_dense": {"head_dim": 8}, "hunyuan_v1_moe": {"head_dim": 8}, "ministral": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "nemotron": {"num_key_value_heads": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "dots3_note_text": _DOTS3,
    "dots3_note_vision_encoder": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
                                  "mlp_layer_types": ["dense"], "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
                                 "adapter_input_size": 32, "adapter_out_dim": 32},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "fuyu": {"text_config": {"model_type": "persimmon", **_TEXT}},
    "gemma3n_vision": {"architecture": "test_vit", "hidden_size": 64},
    "gemma3": {"vision_config": _VISION}, "gemma4_unified": {"vision_config": _VISION},
    "got_ocr2": {"text_config": {"model_type": "qwen2", **_TEXT}, "vision_config": _VISION},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3", "head_dim": 8, **_TEXT},
                                "audio_config": {**_VISION, "d_model": 32, "encoder_layers": 1,
                                                 "encoder_attention_heads": 4, "encoder_ffn_dim": 48}},
    "xlm": {"causal": True},
    "esm": {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "mask_token_id": VOCAB_SIZE - 1},
    "luke": {"entity_vocab_size": 16, "entity_emb_size": 16}, "neomme": {"head_dim": 16},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 5, "<image>": 6, "<|visual token 000000|>": 7}},
    "emu3_vqgan": {"codebook_size": 8, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": [1]},
    "dory": {"num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2,
             "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"]},
    "inkling2_loop_text": {"num_hidden_layers": 3, "n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": 2,
                           "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
                           "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_hidden_layers": 2},
    "qwen4_exp": _QWEN4, "qwen4_exp_text": _QWEN4,
    "gemma3n_text": {"num_hidden_layers": 6, "num_kv_shared_layers": 2, "intermediate_size": [48] * 6,
                     "layer_types": ["sliding_attention", "full_attention"] * 3,
                     "activation_sparsity_pattern": [0.0] * 6},
    "prophetnet": {"num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"],
                 "hash_seed": 7, "num_buckets": 4},
    "xlnet": {"d_head": 8},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid"]},
}  # fmt: skip
"""Model type → fields beside `SIZES`."""


def model_types() -> list[str]:
    """Every model type of transformers' automatic class for causal language models."""
    from transformers.models.auto import modeling_auto

    return list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def architecture(model_type: str) -> str:
    """The name of the type's class."""
    from transformers.models.auto import modeling_auto

    return str(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The configuration of a tiny model of this type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _tiny(CONFIG_MAPPING[model_type], {**SPECIAL.get(model_type, {}), **overrides})


def make_model(config: Any, auto_class: str = "AutoModelForCausalLM") -> Any:
    """A random model of a configuration, fp32, whose norms and biases are no ones and zeros."""
    import torch
    import transformers

    factory = getattr(transformers, auto_class)
    with torch.device("meta"):
        size = sum(p.numel() for p in factory.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size} parameters in its smallest configuration here")
    torch.manual_seed(0)
    model = factory.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "sinks" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    if getattr(model, "generation_config", None) is None:
        return model.eval()
    # generate() must not stop early, and not force tokens that the model didn't choose.
    for name in ("eos_token_id", "forced_eos_token_id", "forced_bos_token_id"):
        setattr(model.generation_config, name, None)
    return model.eval()


def _tiny(cls: Any, special: Mapping[str, Any]) -> Any:
    fields = {f.name: f.default for f in dataclasses.fields(cls)}
    settings: dict[str, Any] = {}
    for name, value in SIZES.items():
        own = cls.attribute_map.get(name, name)
        if own not in fields or own in settings:
            continue
        if isinstance(fields[own], (int, float)) and not isinstance(fields[own], bool):
            settings[own] = value
    for name, present in fields.items():
        if name.endswith(("token_id", "token_index")) and isinstance(present, int) and present >= VOCAB_SIZE:
            settings[name] = TOKENS.get(name, VOCAB_SIZE - 1)
    for name, sub in (getattr(cls, "sub_configs", None) or {}).items():
        if sub.__name__ != "AutoConfig" and name not in special:
            settings[name] = _tiny(sub, SPECIAL.get(sub.model_type, {})).to_dict()
    if fields.get("layer_types", 0) is None and "layer_types" not in special:
        kinds = list(dict.fromkeys(cls().layer_types or ()))
        if kinds:
            settings["layer_types"] = (kinds * LAYERS)[:LAYERS] if len(kinds) <= LAYERS else kinds
            settings["num_hidden_layers"] = len(settings["layer_types"])
    return cls(**{**settings, **special})
