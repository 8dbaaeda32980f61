"""Mixers that compute all rows of a step at once: their convolution and scan by kernels that keep rows apart.

transformers' mixers leave both to functions of one name in every model's file: `causal_conv1d_fn`, and
`mamba2_chunk_scan` or `torch_chunk_gated_delta_rule`. A mixer whose forward pass calls no other function over
the tokens can have the packed batch as if it were one prompt without a state: in a copy of its forward pass,
the names stand for kernels that begin and end each sequence with the state in its slot. Whether that gives
what the mixer gives row by row is found by trying.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

from dodona.kernels.state_space.causal_conv import causal_conv
from dodona.kernels.state_space.gated_delta import gated_delta
from dodona.kernels.state_space.selective_scan import selective_scan
from dodona.kernels.state_space.sequences import SlotSequences
from dodona.runners.v1.agreement import ROUNDING, close
from dodona.runners.v1.mixers import Mixer, at_tokens
from dodona.runners.v1.state_slots import PackedForward

_CONV, _SCAN, _DELTA = "causal_conv1d_fn", "mamba2_chunk_scan", "torch_chunk_gated_delta_rule"


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A mixer's slots and the step's sequences, for the functions that its forward pass calls."""

    conv: torch.Tensor | None
    recurrent: torch.Tensor | None
    sequences: SlotSequences


_step: ContextVar[_Step] = ContextVar("dodona_v1_packed_mixer")


class _NoState(LinearAttentionLayer):
    """A cache layer that keeps nothing, as the kernels do."""

    def update_conv_state(self, conv_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        return recurrent_states


def packed_forward(mixer: Mixer) -> PackedForward | None:
    """What computes the mixer for packed sequences; None where that gives something else."""
    kinds = [state.kind for state in mixer.states]
    function = inspect.unwrap(mixer.forward)
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or len(set(kinds)) != len(kinds):
        return None
    needed = {"conv": {_CONV}, "recurrent": {_SCAN, _DELTA}}
    if any(needed[kind].isdisjoint(function.__code__.co_names) for kind in kinds):
        return None
    names = {**function.__globals__, _CONV: _conv, _SCAN: _scan, _DELTA: _delta}
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__

    def forward(arguments: Mapping[str, Any], slots: Sequence[torch.Tensor], sequences: SlotSequences) -> Any:
        by_kind = dict(zip(kinds, slots, strict=True))
        token = _step.set(_Step(by_kind.get("conv"), by_kind.get("recurrent"), sequences))
        cache = Cache(layers=[_NoState()] * (mixer.layer_idx + 1))
        bound = inspect.BoundArguments(mixer.signature, {**arguments, mixer.cache_argument: cache})
        try:
            return copy(mixer.module, *bound.args, **bound.kwargs)
        finally:
            _step.reset(token)

    try:
        with torch.inference_mode():
            return forward if _agrees(mixer, forward) else None
    except Exception:  # it calls them in another way, or keeps its state elsewhere
        return None


def _agrees(mixer: Mixer, forward: PackedForward) -> bool:
    """Whether two sequences in one batch, a prompt each and then a token or a chunk, give what each gives by
    itself."""
    parts = ([[0, 1, 2, 3], [4]], [[4, 5], [0, 1, 2]])
    alone = [mixer.piecewise(part) for part in parts]
    device = alone[0].outputs[0].device
    # What a slot holds before does not count.
    slots = [torch.full((3, *s.shape), 7.0, dtype=s.dtype, device=device) for s in mixer.states]
    where = torch.tensor([2, 0], device=device)
    for i in range(2):
        indices = [part[i] for part in parts]
        starts = torch.tensor([0, len(indices[0]), sum(map(len, indices))], dtype=torch.int32, device=device)
        begins = torch.full((2,), i == 0, device=device)
        sequences = SlotSequences(starts, where, begins, max(map(len, indices)))
        arguments = at_tokens(mixer.arguments, [t for part in indices for t in part])
        found = forward(arguments, slots, sequences)
        if not isinstance(found, torch.Tensor) or found.dtype not in ROUNDING:
            return False
        if not close(torch.cat([each.outputs[i] for each in alone], 1), found):
            return False
    dtype = alone[0].outputs[0].dtype
    return all(
        close(state[0].to(dtype), slots[number][slot].to(dtype))
        for each, slot in zip(alone, where.tolist(), strict=True)
        for number, state in enumerate(each.states)
    )


def _conv(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """In place of transformers' `causal_conv1d_fn`, for [1, channels, tokens]."""
    step = _step.get()
    if step.conv is None or activation not in (None, "silu", "swish") or hidden_states.shape[0] != 1:
        raise NotImplementedError(f"a convolution with activation {activation}")
    out = causal_conv(
        x=hidden_states[0].T,
        weight=weight.contiguous(),
        bias=bias,
        state=step.conv,
        sequences=step.sequences,
        silu=activation is not None,
    )
    return out.T[None]


def _scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    z: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """In place of transformers' `mamba2_chunk_scan`, for [1, tokens, …]."""
    step = _step.get()
    if step.recurrent is None or z is not None or initial_states is not None:
        raise NotImplementedError("a scan with a gate, or from a state of its own")
    if tuple(dt_limit) != (0.0, float("inf")):
        # transformers' decode step does not apply it, so that the two differ.
        raise NotImplementedError(f"a scan with time steps limited to {dt_limit}")
    x, b, c = (_with_contiguous_rows(t[0]) for t in (hidden_states, B, C))
    out = selective_scan(
        x=x,
        dt=dt[0],
        a=A,
        b=b,
        c=c,
        d=D,
        dt_bias=dt_bias,
        softplus=dt_softplus,
        state=step.recurrent,
        sequences=step.sequences,
    )[None]
    return (out, step.recurrent) if return_final_states else out


def _delta(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of transformers' `torch_chunk_gated_delta_rule`, for [1, tokens, …]."""
    step = _step.get()
    if step.recurrent is None or initial_state is not None:
        raise NotImplementedError("a delta rule that begins with a state of its own")
    q, k, v = (_with_contiguous_rows(t[0]) for t in (query, key, value))
    out = gated_delta(
        q=q,
        k=k,
        v=v,
        g=g[0].contiguous(),
        beta=beta[0].contiguous(),
        unit_length=use_qk_l2norm_in_kernel,
        state=step.recurrent,
        sequences=step.sequences,
    )
    return out[None], step.recurrent


def _with_contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    """The same [tokens, a, b] with all of a token side by side, as the kernel reads it."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
