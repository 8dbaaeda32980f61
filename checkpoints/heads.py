"""Shapes and files of the draft heads for checkpoints/qwen3: an EAGLE3 head in both published formats, and a
P-EAGLE head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGET = "qwen3"
NUM_SPECULATIVE_TOKENS = 4
DRAFT_VOCAB_SIZE = 320
LAYER_IDS = (1, 2, 3)
"""The inputs of the target's second and third layer, and the output of its third: it has no more."""


@dataclass(frozen=True, slots=True)
class HeadRecipe:
    """How one head is made, and the folders it is saved to."""

    title: str
    num_layers: int
    parallel: bool
    folders: Mapping[str, str]
    """Folder → format: "safeailab" or "speculators"."""


RECIPES: Mapping[str, HeadRecipe] = {
    "eagle3": HeadRecipe(
        "an EAGLE3 draft head",
        1,
        False,
        {"qwen3-eagle3": "safeailab", "qwen3-eagle3-speculators": "speculators"},
    ),
    "peagle": HeadRecipe("a P-EAGLE draft head", 2, True, {"qwen3-peagle": "speculators"}),
}


def head_configuration(recipe: HeadRecipe, target: Any, *, form: str, mask_token_id: int) -> dict[str, Any]:
    """config.json of a head for `target`, transformers' configuration of the target."""
    layers = {
        "model_type": "llama",
        "hidden_size": target.hidden_size,
        "intermediate_size": 256,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": target.max_position_embeddings,
        "rope_theta": 10_000.0,
        "vocab_size": target.vocab_size,
        "attention_bias": False,
        "mlp_bias": False,
    }
    sizes = {"draft_vocab_size": DRAFT_VOCAB_SIZE, "target_hidden_size": target.hidden_size}
    if form == "safeailab":
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            **layers,
            **sizes,
            "eagle_config": {
                "eagle_aux_hidden_state_layer_ids": list(LAYER_IDS),
                "use_aux_hidden_state": True,
            },
            "dtype": "bfloat16",
        }
    kind = "peagle" if recipe.parallel else "eagle3"
    return {
        "architectures": ["PEagleSpeculator" if recipe.parallel else "Eagle3Speculator"],
        "speculators_model_type": kind,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": NUM_SPECULATIVE_TOKENS}],
            "verifier": {"name_or_path": TARGET, "architectures": list(target.architectures)},
        },
        "transformer_layer_config": layers,
        **sizes,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(LAYER_IDS),
        **({"mask_token_id": mask_token_id} if recipe.parallel else {}),
        "dtype": "bfloat16",
    }


def save_head(
    folder: Path,
    configuration: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    targets: Tensor,
    *,
    form: str,
) -> None:
    """Write config.json and model.safetensors (bf16).

    tensors: by speculators' names. targets: [draft vocabulary] int64, the target's token of each drafted one.
    """
    from safetensors.torch import save_file

    named = {
        name.replace("layers.0.", "midlayer.") if form == "safeailab" else name: (
            tensor.detach().cpu().to(torch.bfloat16).contiguous()
        )
        for name, tensor in tensors.items()
    }
    if "mask_hidden" in named:
        named["mask_hidden"] = named["mask_hidden"].reshape(1, 1, -1).clone()
    targets = targets.cpu()
    named["d2t"] = targets - torch.arange(len(targets))
    layers = configuration.get("transformer_layer_config", configuration)
    named["t2d"] = torch.zeros(layers["vocab_size"], dtype=torch.bool).index_fill_(0, targets, True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
