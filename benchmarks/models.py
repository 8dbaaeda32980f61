"""Models by shape: config.json files of known sizes, for engines that fill them with random weights.

Nothing is downloaded: what decides speed is the shape, and that is all there is here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_QWEN3: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_COMMON: Mapping[str, Any] = {"hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16"}


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _integers(bits: int, group_size: int | None = None, *, symmetric: bool = True) -> Mapping[str, Any]:
    """compressed-tensors' packed integers."""
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    weights = {"type": "int", "num_bits": bits, "symmetric": symmetric, **strategy}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


_INT8_ACTIVATIONS = {"type": "int", "num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
_INT8_WEIGHTS = {"type": "int", "num_bits": 8, "symmetric": True, "strategy": "channel"}

_QUANTIZED: Mapping[str, Mapping[str, Any]] = {
    "w4a16": _integers(4, 128),
    "w4a16-asym": _integers(4, 128, symmetric=False),
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "w8a16": _integers(8),
    "w8a8": {
        **_integers(8),
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _INT8_WEIGHTS,
                "input_activations": _INT8_ACTIVATIONS,
            }
        },
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8-block": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}
"""What is appended to a model's name → its `quantization_config`: groups of 128 (the first four), rows
(twice), a whole weight, blocks of 128 × 128."""

_DENSE: Mapping[str, Mapping[str, Any]] = {
    "qwen3-0.6b": {
        **_COMMON, **_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        **_COMMON, **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        **_COMMON, **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        **_COMMON, **_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        **_COMMON, **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True,
        "rope_scaling": _llama3_rope(32.0),
    },
    "llama-3.1-8b": {
        **_COMMON, **_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "head_dim": 128, "tie_word_embeddings": False,
        "rope_scaling": _llama3_rope(8.0),
    },
    "mistral-7b": {
        **_COMMON, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    },
    "qwen2-1.5b": {
        **_COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536,
        "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False,
        "tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151645,
    },
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 1152,
        "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "torch_dtype": "bfloat16",
        "attention_bias": False, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    },
    "qwen3-30b-a3b": {
        **_COMMON, **_QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "tie_word_embeddings": False,
    },
    "falcon-h1-1.5b": {
        **_COMMON, "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "hidden_size": 2048,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "mamba_d_ssm": 3072, "mamba_n_heads": 48,
        "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
        "mamba_chunk_size": 128, "mamba_expand": 2, "vocab_size": 65536, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 1e11, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 11, "pad_token_id": 0,
    },
    "tiny": {
        **_COMMON, **_QWEN3, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 211,
        "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": True, "torch_dtype": "float32",
    },
}  # fmt: skip
# 12 of the 48 layers, so that several such models fit on a GPU.
_PLAIN = {**_DENSE, "qwen3-30b-a3b-12": {**_DENSE["qwen3-30b-a3b"], "num_hidden_layers": 12}}
SHAPES: Mapping[str, Mapping[str, Any]] = _PLAIN | {
    f"{name}-{suffix}": {**_PLAIN[name], "quantization_config": quantization}
    for name in ("qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b-12")
    for suffix, quantization in _QUANTIZED.items()
}
"""config.json by name. "tiny" is for trying the programs where there is no GPU."""


def read_config(model: str) -> dict[str, Any]:
    """The config.json of a name in `SHAPES`, or of a directory (or of the file itself).

    Raises ValueError that says what is known where it is neither.
    """
    if model in SHAPES:
        return dict(SHAPES[model])
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"--model {model!r} is neither a directory with a config.json nor a known shape; "
            f"known shapes: {', '.join(SHAPES)}"
        )
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


@contextmanager
def model_directory(model: str) -> Iterator[Path]:
    """A directory with the model's config.json alone, so that no engine finds weights or a tokenizer."""
    config = read_config(model)
    with tempfile.TemporaryDirectory(prefix="benchmark-model-") as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        yield Path(directory)
