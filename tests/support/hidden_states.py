"""Which models' hidden states a draft head can look at: ``python -m tests.support.hidden_states`` tries all
families that V1 packs and no rule names."""

from __future__ import annotations

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.row_by_row import ROW_BY_ROW, UNSERVED
from dodona.runners.v1.capabilities import NO_LAYERS_SEEN, SEVERAL_STREAMS
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from tests.support.every_family import LAYERS, make_model, model_types, tiny_config

WRAPPERS = {
    "dots3_note", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "llama4", "mllama", "musicgen",
    "musicgen_melody", "qwen4_exp",
}  # fmt: skip
"""Types of whole models, whose text models have types of their own; no tiny model is made of some."""


def seen(model_type: str) -> tuple[bool, bool]:
    """Whether one hidden state of each token is found: after the model, and at its layers."""
    model = make_model(tiny_config(model_type))
    size = model.config.get_text_config(decoder=True).hidden_size
    found = []
    for layer_ids in ((), (0, LAYERS)):
        try:
            hidden = HiddenStates(model, layer_ids)
        except UnsupportedConfiguration:
            found.append(False)
            continue
        with torch.inference_mode():
            model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
        found.append(tuple(hidden.batched().shape) == (1, 3, size * max(1, len(layer_ids))))
    return found[0], found[1]


def main() -> None:
    """Print the families that hide some."""
    left_out = {*NO_LAYERS_SEEN, *SEVERAL_STREAMS, *ROW_BY_ROW, *UNSERVED, *WRAPPERS}
    packed = [model_type for model_type in model_types() if model_type not in left_out]
    hiding = [model_type for model_type in packed if seen(model_type) != (True, True)]
    print(f"{len(packed)} families, of which hide their states: {', '.join(hiding) or 'none'}")


if __name__ == "__main__":
    main()
