"""Pipeline parallelism: each rank of a group holds consecutive layers, and hands hidden states to the next.

The model keeps its modelling code. Layers of other stages become stand-ins that hand on what they get; the
first layer of a stage takes the hidden states of the stage before in place of its input, and the last one
sends its output on. Embeddings and the output head stand in on the stages that have no use for them; a draft
head on the last stage may have use for the embedding, and so have layers with inputs of their own.

Layers that reuse the keys and values of earlier ones are on one stage with them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.shared_kv import first_shared_layer
from dodona.runners.distributed.mesh import Group


def stage_layers(model: Any, count: int, group: Group) -> range:
    """Which of a model's `count` layers this rank holds; the first stages get those that are left over.

    Raises UnsupportedConfiguration where layers that share keys and values leave too few for the stages.
    """
    stages = group.size
    cuts = [-(-count * number // stages) for number in range(stages + 1)]
    config = _text_config(model)
    joined = first_shared_layer(getattr(config, "layer_types", None), count, _reusing(config))
    if cuts[-2] > joined:
        if joined < stages - 1:
            raise _refusal(
                f"layers {joined} to {count - 1} share keys and values on one stage, which leaves {joined} "
                f"layers for {stages - 1} stages; lower pipeline_parallel_size"
            )
        cuts = [*(-(-joined * number // (stages - 1)) for number in range(stages)), count]
    return range(cuts[group.rank], cuts[group.rank + 1])


def _reusing(config: Any) -> int:
    """How many layers at the end reuse keys and values of earlier ones."""
    return getattr(config, "num_kv_shared_layers", None) or 0


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def take_stage(model: torch.nn.Module, group: Group, *, last_has_embedding: bool = False) -> None:
    """Keep this rank's layers of a transformers model, in place.

    last_has_embedding: the last stage keeps the input embedding, too.

    On all stages but the last, logits are zeros. Nothing happens in a group of one. Raises
    UnsupportedConfiguration where transformers has no plan that names the model's layers, where they are
    fewer than the stages, and where they can't be spread (`stage_layers`).
    """
    if group.size == 1:
        return
    layers = _layers(model)
    count, stages, stage = len(layers), group.size, group.rank
    if count < stages:
        raise _refusal(f"{count} layers for {stages} stages; lower pipeline_parallel_size")
    held = stage_layers(model, count, group)
    whole: Any = model
    config = _text_config(model)
    cached = DynamicCache(config=config).layers
    for number, layer in enumerate(layers):
        if number not in held:
            has_kv = number < count - _reusing(config)
            has_kv = has_kv and (number >= len(cached) or hasattr(cached[number], "update"))
            layers[number] = _Elsewhere(layer, number, has_kv=has_kv)
    is_last = stage == stages - 1
    if stage > 0:
        layers[held.start].register_forward_pre_hook(_receiving(group, stage - 1))
        # What each layer is given of its own is computed from the embedding.
        has_layer_inputs = bool(getattr(config, "hidden_size_per_layer_input", None))
        if not (has_layer_inputs or (is_last and last_has_embedding)):
            whole.set_input_embeddings(_NoEmbedding(whole.get_input_embeddings()))
    if not is_last:
        layers[held.stop - 1].register_forward_hook(_sending(group, stage + 1))
        whole.set_output_embeddings(_NoHead(whole.get_output_embeddings()))


def _layers(model: Any) -> Any:
    planned = [name for name in (getattr(model, "pp_plan", None) or {}) if name.endswith("layers")]
    module = dict(model.named_modules()).get(planned[0]) if planned else None
    if module is None:  # a plan may name what its model has not
        raise _refusal(f"{type(model).__name__}: transformers has no plan of its layers")
    return module


def _receiving(group: Group, source: int) -> Any:
    def receive(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, *others = args
        return (group.receive(torch.empty_like(hidden_states), source), *others)

    return receive


def _sending(group: Group, to: int) -> Any:
    def send(_module: Any, _args: Any, output: torch.Tensor) -> None:
        group.send(output, to)

    return send


class _Elsewhere(torch.nn.Module):
    """In place of a layer of another stage."""

    def __init__(self, layer: Any, number: int, *, has_kv: bool) -> None:
        super().__init__()
        self._number = number
        self._has_kv = has_kv
        for name in ("attention_type", "layer_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """The hidden states as they are. A cache of the model's own counts its tokens in every layer with
        keys and values."""
        if past_key_values is not None and self._has_kv:
            nothing = hidden_states.new_zeros(1, 1, hidden_states.shape[-2], 1)
            past_key_values.update(nothing, nothing, self._number)
        return hidden_states


class _NoEmbedding(torch.nn.Module):
    """In place of the input embedding: zeros of its shape."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.num_embeddings = embedding.num_embeddings
        self._width = embedding.weight.shape[1]
        self._like = embedding.weight.new_zeros(1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[1, T] -> [1, T, hidden_size]."""
        zero: torch.Tensor = self._like.to(input_ids.device)
        return zero.expand(*input_ids.shape, self._width)


class _NoHead(torch.nn.Module):
    """In place of the output head: zeros of its shape."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self._vocab_size = head.out_features

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[1, n, hidden_size] -> [1, n, vocab]."""
        return hidden_states.new_zeros(1).expand(*hidden_states.shape[:-1], self._vocab_size)


def _refusal(why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking("v1", "pipeline-parallelism", why=why)
