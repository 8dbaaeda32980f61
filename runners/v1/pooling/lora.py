"""Which linear layers of a pooling model can have adapters."""

from __future__ import annotations

from typing import Any

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.lora.target import is_expert
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.v1.lora import FoundLayer, features, is_linear
from dodona.runners.v1.pooling.model import TransformersPoolingModel

_PROBED_TOKENS = 5


def layers_of_batches(model: TransformersPoolingModel) -> list[FoundLayer]:
    """The linear layers that see a batch [rows, tokens] in this order, once in a pass, or one token of each
    row. Found by a pass with hooks. Those after the base model are heads.

    Raises UnsupportedConfiguration where the model does not compute the pass.
    """
    module = model.module
    rows = 2 if model.pads else 1
    seen: dict[str, list[tuple[int, ...]]] = {}

    def watch(name: str) -> Any:
        def hook(layer: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            shape: tuple[int, ...] = ()
            if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
                sizes = features(layer)
                if (args[0].shape[-1], output.shape[-1]) == (sizes.in_features, sizes.out_features):
                    shape = tuple(args[0].shape[:-1])
            seen.setdefault(name, []).append(shape)

        return hook

    hooks = [
        layer.register_forward_hook(watch(name))
        for name, layer in module.named_modules()
        if is_linear(layer) and not is_expert(name)
    ]
    ids = [i % model.vocab_size for i in range(1, _PROBED_TOKENS + 1)]
    try:
        model.compute([TokenSequence(ids)] * rows)
    except Exception as error:
        why = f"{model.name} can't be run to find its linear layers: {error}"
        raise UnsupportedConfiguration.lacking("v1", "lora", why=why) from error
    finally:
        for hook in hooks:
            hook.remove()
    of_tokens = {(rows, _PROBED_TOKENS), (rows * _PROBED_TOKENS,)}
    of_rows = {(rows,), (rows, 1)}
    base = f"{module.base_model_prefix}."
    has_heads = module.base_model is not module
    return [
        FoundLayer(name, shapes[0] in of_rows, is_head=has_heads and not name.startswith(base))
        for name, shapes in seen.items()
        if len(shapes) == 1 and shapes[0] in of_tokens | of_rows
    ]
