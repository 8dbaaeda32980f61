"""What a draft head sees of its target: hidden states of a forward pass, by hooks.

Where layers are spread over ranks, each stage hands on what it and the stages before have seen, right after
the hidden states that the next one goes on from; the last stage then has all. Where prompts are shared, the
ranks of the last stage gather the states of their tokens at the end of the pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import ALONE, Group, Mesh
from dodona.runners.v1.attention import current_forward
from dodona.runners.v1.context_parallel import SharedForwardState
from dodona.runners.v1.pipeline_parallel import stage_layers


class HiddenStates:
    """Hidden states of a model's last forward pass, [1, T, size] each.

    layer_ids: whose input is kept; the number of layers means the last one's output. None of them: the last
    hidden state, after the model's norm. mesh: the rank's place among those that share the model; all ranks
    of its pipeline and of its context group look at the same layers, and the last stage has the states.

    Raises UnsupportedConfiguration where the model's layers aren't found.
    """

    def __init__(self, model: nn.Module, layer_ids: tuple[int, ...], mesh: Mesh = ALONE) -> None:
        self._kept: list[Tensor | None] = [None] * max(1, len(layer_ids))
        pipeline = mesh.pipeline
        decoder, layers = _decoder(model)
        held = stage_layers(model, len(layers), pipeline)
        is_last = pipeline.rank == pipeline.size - 1
        before = [place for place, index in enumerate(layer_ids) if index < held.start]
        if before:
            layers[held.start].register_forward_pre_hook(
                _receiving(self._kept, before, pipeline), with_kwargs=True
            )
        for place, index in enumerate(layer_ids):
            if index in held:
                layers[index].register_forward_pre_hook(_of_input(self._kept, place), with_kwargs=True)
            elif is_last and index == len(layers):
                layers[-1].register_forward_hook(_of_output(self._kept, place), with_kwargs=True)
        seen = [place for place, index in enumerate(layer_ids) if index < held.stop]
        if seen and not is_last:
            layers[held.stop - 1].register_forward_hook(_sending(self._kept, seen, pipeline))
        if not layer_ids and is_last:
            decoder.register_forward_hook(self._keep_last_hidden_state)
        if is_last and mesh.context.size > 1:
            decoder.register_forward_hook(self._gather)

    def last(self) -> Tensor:
        """[T, n * size]: those of the last forward pass, side by side."""
        return self.batched()[0]

    def batched(self) -> Tensor:
        """[B, T, n * size]: the same of a forward pass over a batch."""
        kept = [state for state in self._kept if state is not None]
        if len(kept) < len(self._kept):
            raise RuntimeError("hidden states are asked for before a forward pass")
        return torch.cat(kept, dim=-1)

    def _keep_last_hidden_state(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._kept[0] = output[0] if isinstance(output, tuple) else output.last_hidden_state

    def _gather(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The states of all tokens of a step, in place of those of this rank's share."""
        state = current_forward()
        if isinstance(state, SharedForwardState):
            whole = state.whole(self.last())[None]
            self._kept[:] = whole.chunk(len(self._kept), dim=-1)


def _of_input(kept: list[Tensor | None], place: int) -> Any:
    def keep(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept[place] = _input(arguments, named)

    return keep


def _of_output(kept: list[Tensor | None], place: int) -> Any:
    def keep(module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        kept[place] = output[0] if isinstance(output, tuple) else output

    return keep


def _receiving(kept: list[Tensor | None], places: list[int], group: Group) -> Any:
    def receive(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = _input(arguments, named)
        sent = hidden.new_empty(*hidden.shape[:-1], len(places) * hidden.shape[-1])
        parts = group.receive(sent, group.rank - 1).chunk(len(places), dim=-1)
        for place, part in zip(places, parts, strict=True):
            kept[place] = part

    return receive


def _sending(kept: list[Tensor | None], places: list[int], group: Group) -> Any:
    def send(module: nn.Module, arguments: Any, output: Any) -> None:
        group.send(torch.cat([state for p in places if (state := kept[p]) is not None], -1), group.rank + 1)

    return send


def _input(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    found: Tensor = arguments[0] if arguments else named["hidden_states"]
    return found


def _decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The model without its head, and its layers: the list of as many modules as its configuration says."""
    whole: Any = model
    count = whole.config.get_text_config(decoder=True).num_hidden_layers
    decoder: nn.Module = whole.get_decoder()
    found = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise UnsupportedConfiguration.lacking(
            "v1",
            "speculative-hidden-states",
            why=f"{type(model).__name__} has no list of its {count} layers that a draft head could look at",
        )
    return decoder, found[0]
