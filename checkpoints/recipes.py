"""The architectures: half a million parameters (1 MB in bf16), each with something the others lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.upcycle import upcycle_qwen3

MAX_LENGTH = 512
"""Positions the models allow; they were trained on up to about 190 tokens."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one checkpoint is made."""

    title: str
    what: str
    build: Callable[[dict[str, Any]], Any]
    """Makes the untrained transformers model from the arguments every configuration shares."""
    recall: bool
    """Whether conversations ask for their first answer: beyond the reach of a sliding window."""
    max_shard_size: str
    start: str = "from scratch"
    """What training begins from."""


def _qwen3(common: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            **common,
            num_hidden_layers=3,
            intermediate_size=192,
            num_attention_heads=8,  # 8 x 32 = 256 is not the hidden size, as in Qwen3-0.6B
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )


def _llama(common: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            **common,
            num_hidden_layers=4,
            intermediate_size=192,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    )


def _mistral(common: dict[str, Any]) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(
            **common,
            num_hidden_layers=4,
            intermediate_size=192,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            sliding_window=28,  # shorter than a conversation of two turns, and no multiple of a KV block
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )


def _lfm2(common: dict[str, Any]) -> Any:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return Lfm2ForCausalLM(
        Lfm2Config(
            **common,
            num_hidden_layers=4,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            intermediate_size=192,
            block_auto_adjust_ff_dim=False,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )


def _qwen3_moe(common: dict[str, Any]) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **common,
            num_hidden_layers=3,
            intermediate_size=192,
            moe_intermediate_size=96,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            num_attention_heads=8,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )
    model.set_experts_implementation("eager")  # the fastest on a CPU
    upcycle_qwen3(model, Path(__file__).resolve().parent / "qwen3")
    return model


RECIPES: Mapping[str, Recipe] = {
    "qwen3": Recipe(
        title="Tiny Qwen3",
        what="Qwen3ForCausalLM: tied embeddings, QK norm, 8 heads of 32 on a hidden size of 128, one file",
        build=_qwen3,
        recall=True,
        max_shard_size="50GB",
    ),
    "llama": Recipe(
        title="Tiny Llama",
        what="LlamaForCausalLM: untied embeddings, Llama-3 RoPE scaling, several files with an index",
        build=_llama,
        recall=True,
        max_shard_size="400KB",
    ),
    "mistral": Recipe(
        title="Tiny Mistral",
        what="MistralForCausalLM: untied embeddings, a sliding window of 28 tokens, one file",
        build=_mistral,
        recall=False,
        max_shard_size="50GB",
    ),
    "qwen3_moe": Recipe(
        title="Tiny Qwen3-MoE",
        what="Qwen3MoeForCausalLM: 4 experts in each layer, 2 for each token, one file",
        build=_qwen3_moe,
        recall=True,
        max_shard_size="50GB",
        start="from the tiny Qwen3 by upcycling (`checkpoints/upcycle.py`)",
    ),
    "lfm2": Recipe(
        title="Tiny LFM2",
        what="Lfm2ForCausalLM: short convolutions with an inner state between attention layers, one file",
        build=_lfm2,
        recall=True,
        max_shard_size="50GB",
    ),
}
