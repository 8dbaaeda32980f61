"""The position ids that a model of transformers expects."""

from __future__ import annotations

import inspect

import torch


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether the positions of its tokens can be given to the model."""
    parameters = inspect.signature(model.forward).parameters
    # Reformer counts its position_ids from its own cache.
    return "position_ids" in parameters and "past_buckets_states" not in parameters


def first_position(model: torch.nn.Module) -> int:
    """The position id of a sequence's first token.

    0, but RoBERTa and its kin number positions from padding_idx + 1 on: `padding_idx` is padding's own.
    """
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        table = getattr(module, "position_embeddings", None)
        numbers = hasattr(module, "create_position_ids_from_input_ids")
        if numbers and isinstance(table, torch.nn.Embedding) and isinstance(padding, int):
            return padding + 1 if table.padding_idx == padding else 0
    return 0
