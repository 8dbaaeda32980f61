"""Modules with an inner state, found at load, and run on packed steps.

transformers keeps such a state in a cache layer: `update_conv_state`, `update_recurrent_state`. The innermost
module that calls these is a *mixer*. Where kernels keep sequences apart, it computes the packed batch at once
(see `packed_mixers`). Elsewhere it never gets one: inside a step, its forward splits the packed tokens
[1, T, …], runs all decodes as one batch [D, 1, …] with their states gathered by slot, and every chunk as
[1, n, …], by the mixer's own code with a cache layer of the states in question, which are then stored. Rows
that verify drafts compute token by token, as decodes do, so that the states after each token are kept. All
other modules stay packed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin, LinearAttentionLayer

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.v1.lora import adapters_of
from dodona.runners.v1.state_slots import MixerStates, StateChunk, StateRound, StateSpec

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""Names under which models and mixers take a cache, by version and age."""

STATE_API = frozenset(
    {
        "get_conv_state",
        "get_recurrent_state",
        "has_previous_state",
        "is_recording_past",
        "layers",
        "update_conv_state",
        "update_recurrent_state",
    }
)
"""Attributes of a cache that mixers use."""

_SPIED_TOKENS = 6

_current: ContextVar[MixerStates | None] = ContextVar("dodona_v1_states", default=None)


@contextmanager
def step_states(states: MixerStates | None) -> Iterator[None]:
    """Give `states` to the mixers that this thread runs inside."""
    token = _current.set(states)
    try:
        yield
    finally:
        _current.reset(token)


def has_mixers(text_config: Any) -> bool:
    """Whether transformers' cache for this configuration has layers with an inner state."""
    try:
        layers = DynamicCache(config=text_config).layers
    except Exception:  # a configuration that no cache can be made for; `generate` could not either
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def cache_argument(function: Callable[..., Any]) -> str:
    """The name under which `function` takes a cache."""
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), "past_key_values")


class Mixer:
    """A module with an inner state. Once made, it runs the module's forward inside of steps."""

    def __init__(self, module: Any, number: int, call: SpiedCall) -> None:
        self.name = type(module).__name__
        self.module = module
        self.states: tuple[StateSpec, ...] = call.states
        self.layer_idx = call.layer_idx
        self.cache_argument = call.argument
        """Name of the parameter that takes the cache."""
        self.arguments = call.arguments
        """Those of a forward pass over a few tokens, to try things with."""
        self.forward: Callable[..., Any] = module.forward
        """The module's own."""
        self.signature = inspect.signature(self.forward)
        self._number = number
        self.continues = self._measure(call.arguments)
        """Whether several tokens at once go on from a state. Where not, they are computed one by one."""
        module.forward = torch.compiler.disable(self._call)  # type: ignore[no-untyped-call]

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        states = _current.get()
        if states is None:  # the plain model
            return self.forward(*args, **kwargs)
        arguments = self.signature.bind(*args, **kwargs).arguments
        mine = states.tensors[self._number]
        packed = None if states.packed is None else states.packed.forwards[self._number]
        if states.packed is not None and packed is not None:
            return packed(arguments, mine, states.packed.sequences)
        total = _num_tokens(arguments)
        if states.rounds and len(states.rounds[0].tokens) == total:
            batch = _packed(arguments, total, lambda value: value.transpose(0, 1))
            return _turned_back(self._decode(batch, mine, states.rounds[0]))
        parts: list[tuple[Any, Any]] = []
        for single in states.rounds:
            batch = _packed(arguments, total, partial(_column, single.tokens))
            with adapters_of(single.tokens):
                parts.append((single.tokens, _turned_back(self._decode(batch, mine, single))))
        for chunk in states.chunks:
            span = slice(chunk.start, chunk.start + chunk.num_tokens)
            source = [tensor[chunk.source : chunk.source + 1] for tensor in mine]
            target = source
            if chunk.target != chunk.source:
                target = [tensor[chunk.target : chunk.target + 1] for tensor in mine]
            layer = self._layer(None if chunk.fresh else source)
            with adapters_of(span):
                parts.append((span, self._compute(_cut(arguments, span, total), layer, chunk)))
            for slot, state in zip(target, self._states_of(layer), strict=True):
                if state is not slot:  # else it was changed in place
                    slot.copy_(state)
        return _joined(parts, total)

    def piecewise(self, pieces: Sequence[Sequence[int]]) -> Piecewise:
        """The module's own results for its first call's tokens at the indices of each piece: the first piece
        begins without a state, the others go on from it token by token."""
        first, *others = pieces
        layer = self._layer(None)
        outputs = [self._run(at_tokens(self.arguments, first), layer)]
        outputs += [
            torch.cat([self._run(at_tokens(self.arguments, [token]), layer) for token in piece], 1)
            for piece in others
        ]
        return Piecewise(outputs, self._states_of(layer))

    def _decode(self, batch: Mapping[str, Any], mine: Sequence[torch.Tensor], single: StateRound) -> Any:
        states = [tensor.index_select(0, single.sources) for tensor in mine]
        if single.begins is not None:
            for state in states:
                state.masked_fill_(single.begins.view(-1, *[1] * (state.ndim - 1)), 0)
        layer = self._layer(states)
        output = self._run(batch, layer)
        for tensor, state in zip(mine, self._states_of(layer), strict=True):
            tensor.index_copy_(0, single.targets, state)
        return output

    def _compute(self, inputs: Mapping[str, Any], layer: Any, chunk: StateChunk) -> Any:
        count = chunk.num_tokens
        if self.continues or chunk.fresh:
            return self._run(inputs, layer)
        spans = [slice(i, i + 1) for i in range(count)]
        parts: list[tuple[Any, Any]] = []
        for span in spans:
            with adapters_of(span):
                parts.append((span, self._run(_cut(inputs, span, count), layer)))
        return _joined(parts, count)

    def _run(self, arguments: Mapping[str, Any], layer: Any) -> Any:
        cache = Cache(layers=[layer] * (self.layer_idx + 1))
        bound = inspect.BoundArguments(self.signature, {**arguments, self.cache_argument: cache})
        return self.forward(*bound.args, **bound.kwargs)

    def _layer(self, states: Sequence[torch.Tensor] | None) -> Any:
        """A cache layer that holds these states, or none."""
        layer: Any = LinearAttentionLayer(number_of_states=1 + max(spec.index for spec in self.states))
        for spec, state in zip(self.states, states or (), strict=states is not None):
            if spec.kind == "conv":
                layer.conv_states[spec.index] = state
                layer.conv_kernel_size[spec.index] = state.shape[-1]
                layer.is_conv_states_initialized[spec.index] = True
            else:
                layer.recurrent_states[spec.index] = state
                layer.is_recurrent_states_initialized[spec.index] = True
            layer.has_previous_state[spec.index] = True
            layer.device, layer.dtype = state.device, state.dtype
        return layer

    def _states_of(self, layer: Any) -> list[torch.Tensor]:
        """The layer's states; raises RuntimeError where one has another shape than at load."""
        found = []
        for spec in self.states:
            kept = layer.conv_states if spec.kind == "conv" else layer.recurrent_states
            state = kept[spec.index]
            if state is None or state.shape[1:] != spec.shape:
                shape = None if state is None else tuple(state.shape[1:])
                raise RuntimeError(
                    f"{self.name}: its {spec.kind} state has shape {shape}, but {spec.shape} at load"
                )
            found.append(state)
        return found

    def _measure(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the output of two tokens depends on each state that came before them."""
        total = _num_tokens(arguments)
        half = total // 2

        def rest(change: int | None) -> list[torch.Tensor]:
            layer = self._layer(None)
            self._run(_cut(arguments, slice(0, half), total), layer)
            states = [state.clone() for state in self._states_of(layer)]
            if change is not None:
                states[change] += 1
            output = self._run(_cut(arguments, slice(half, total), total), self._layer(states))
            return [t for t in (output if isinstance(output, tuple) else (output,)) if t is not None]

        with torch.inference_mode():
            expected = rest(None)
            if any(tensor.is_meta for tensor in expected):
                return True  # a trial load: nothing has values, and no step follows
            return all(
                any(not torch.equal(a, b) for a, b in zip(expected, rest(i), strict=True))
                for i in range(len(self.states))
            )


@dataclass(frozen=True, slots=True)
class SpiedCall:
    """A mixer's call in a forward pass over a fresh cache."""

    layer_idx: int
    argument: str
    """Name of the parameter that takes the cache."""
    arguments: Mapping[str, Any]
    """By parameter; tensors of the packed tokens are [1, T, …]."""
    states: tuple[StateSpec, ...]


@dataclass(frozen=True, slots=True)
class Piecewise:
    """A mixer's results over a sequence in pieces."""

    outputs: Sequence[torch.Tensor]
    """Of each piece, [1, n, …]."""
    states: Sequence[torch.Tensor]
    """After all of them, [1, …]."""


class _Call:
    """A module's call under way, or ended."""

    def __init__(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.states: dict[tuple[int, str, int], torch.Tensor] = {}
        """By layer_idx, kind and state_idx."""


class _SpyingCache(DynamicCache):
    """Notes which call of `stack` updates which state."""

    def __init__(self, config: Any, stack: list[_Call]) -> None:
        super().__init__(config=config)
        self._stack = stack

    def update_conv_state(self, conv_states: Any, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Any:
        result = super().update_conv_state(conv_states, layer_idx, state_idx, **kwargs)
        self._note(layer_idx, "conv", state_idx)
        return result

    def update_recurrent_state(
        self, recurrent_states: Any, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Any:
        result = super().update_recurrent_state(recurrent_states, layer_idx, state_idx, **kwargs)
        self._note(layer_idx, "recurrent", state_idx)
        return result

    def _note(self, layer_idx: int, kind: str, state_idx: int) -> None:
        layer: Any = self.layers[layer_idx]
        kept = layer.conv_states if kind == "conv" else layer.recurrent_states
        self._stack[-1].states[layer_idx, kind, state_idx] = kept[state_idx]


def install_mixers(model: Any, text_config: Any, device: torch.device) -> tuple[Mixer, ...]:
    """Find the mixers of a model by a forward pass with a cache, and replace their forwards.

    Raises UnsupportedConfiguration where a module keeps states in a way that is not understood.
    """
    calls: list[_Call] = []
    stack: list[_Call] = []

    def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        stack.append(_Call(module, args, kwargs))

    def leave(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = stack.pop()
        if call.states:
            calls.append(call)

    cache = _SpyingCache(text_config, stack)
    argument = cache_argument(model.forward)
    ids = torch.arange(_SPIED_TOKENS, device=device)[None] % model.get_input_embeddings().num_embeddings
    inputs: dict[str, Any] = {"input_ids": ids, argument: cache, "use_cache": True}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(_SPIED_TOKENS, device=device)[None]
    with ExitStack() as hooks, torch.inference_mode():
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        model(**inputs)
    modules = [id(call.module) for call in calls]
    if len(set(modules)) != len(modules):
        raise _refusal("a module updates its states twice in one forward pass")
    return tuple(Mixer(call.module, i, _spied(call, cache)) for i, call in enumerate(calls))


def _spied(call: _Call, cache: Cache) -> SpiedCall:
    name = type(call.module).__name__
    arguments = dict(inspect.signature(call.module.forward).bind(*call.args, **call.kwargs).arguments)
    argument = next((key for key, value in arguments.items() if value is cache), None)
    layers = {layer_idx for layer_idx, _, _ in call.states}
    if argument is None or len(layers) != 1:
        raise _refusal(f"{name} updates states of a cache that it is not given as an argument")
    arguments.pop(argument)
    states = tuple(
        StateSpec("conv" if kind == "conv" else "recurrent", index, tuple(state.shape[1:]), state.dtype)
        for (_, kind, index), state in call.states.items()
    )
    return SpiedCall(layers.pop(), argument, arguments, states)


def _refusal(why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking("v1", "hybrid-mamba", why=why)


# --- Packed tensors: [1, T, …]


def _num_tokens(arguments: Mapping[str, Any]) -> int:
    """T of the first tensor, the hidden states."""
    return next(int(v.shape[1]) for v in arguments.values() if isinstance(v, torch.Tensor))


def _is_packed(value: Any, total: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[:2] == (1, total)


def _packed(
    arguments: Mapping[str, Any], total: int, part: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """The arguments, and those inside of `**kwargs`, with `part` of each packed tensor in its place."""
    return {
        name: part(value)
        if _is_packed(value, total)
        else _packed(value, total, part)
        if isinstance(value, dict)
        else value
        for name, value in arguments.items()
    }


def _column(tokens: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[1, T, …] -> [n, 1, …]: the tokens at packed indices [n], as a batch."""
    return value.index_select(1, tokens).transpose(0, 1)


def _cut(arguments: Mapping[str, Any], span: slice, total: int) -> dict[str, Any]:
    return _packed(arguments, total, lambda value: value[:, span])


def at_tokens(arguments: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
    """The arguments of a call, with the packed tokens at the given indices, in this order."""
    total = _num_tokens(arguments)
    return _packed(arguments, total, lambda value: value[:, list(tokens)])


def _turned_back(output: Any) -> Any:
    """[D, 1, …] -> [1, D, …], in a tuple too."""
    if isinstance(output, tuple):
        return tuple(_turned_back(part) for part in output)
    return output.transpose(0, 1) if isinstance(output, torch.Tensor) else output


def _joined(parts: Sequence[tuple[Any, Any]], total: int) -> Any:
    """The outputs [1, n, …] at their packed indices (a slice or [n] int64): [1, total, …], in a tuple too."""
    first = parts[0][1]
    if isinstance(first, tuple):
        return tuple(
            _joined([(place, output[i]) for place, output in parts], total) for i in range(len(first))
        )
    if not isinstance(first, torch.Tensor):
        return first
    joined = first.new_empty(1, total, *first.shape[2:])
    for place, output in parts:
        joined[:, place] = output
    return joined
