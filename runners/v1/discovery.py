"""Records the attention calls of a model at load: their KV shapes and masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.interface import LayerKVSpec
from dodona.runners.v1.patterns import CAUSAL, AttentionPattern, MaskFunction, recognise

RECORDING_ATTENTION = "dodona_recording"
"""Name in transformers' registries. It has a mask function, so that models say which masks they want."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One attention call of a forward pass."""

    spec: LayerKVSpec
    pattern: AttentionPattern
    dtype: torch.dtype
    """Type of the keys."""
    module: torch.nn.Module
    """What makes the call."""


@dataclass(frozen=True, slots=True)
class ForeignMask:
    """In place of a mask that is not an `AttentionPattern`."""

    local_size: int | None


@dataclass(frozen=True, slots=True)
class _Recording:
    device: torch.device
    """The model's device: its mask functions may use tensors there."""
    calls: list[AttentionCall]


_recorded: ContextVar[_Recording | None] = ContextVar("dodona_v1_recorded", default=None)


@contextmanager
def recording(device: torch.device) -> Iterator[list[AttentionCall]]:
    """A list of the attention calls that a model on `device` makes inside, in order."""
    calls: list[AttentionCall] = []
    token = _recorded.set(_Recording(device, calls))
    try:
        yield calls
    finally:
        _recorded.reset(token)


def _record_mask(
    *args: Any, mask_function: MaskFunction | None = None, local_size: int | None = None, **kwargs: Any
) -> AttentionPattern | ForeignMask:
    """The pattern that the model asks for, in place of a mask tensor."""
    recorded = _recorded.get()
    device = torch.device("cpu") if recorded is None else recorded.device
    pattern = None if mask_function is None else recognise(mask_function, local_size, device)
    return pattern or ForeignMask(local_size)


def _record_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    recorded = _recorded.get()
    if recorded is None:
        raise RuntimeError(f"attention {RECORDING_ATTENTION!r} was called outside of `recording()`")
    calls = recorded.calls
    where = f"attention call {len(calls)} ({type(module).__name__})"
    if kwargs.get("position_bias") is not None:
        raise _refusal(f"{where} adds a position bias to its scores")
    if query.shape[2] != key.shape[2] or query.shape[1] % key.shape[1] or key.shape[:3] != value.shape[:3]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
        raise _refusal(f"{where} is no self-attention over the step's tokens: query, key, value are {shapes}")
    if isinstance(attention_mask, AttentionPattern):
        pattern = attention_mask
    elif attention_mask is not None:
        raise _refusal(f"{where} uses a mask that is neither causal, nor sliding-window, nor chunked")
    else:
        pattern = AttentionPattern("sliding", sliding_window) if sliding_window else CAUSAL
    # A query sees no farther back than this; in chunks, most see less.
    window = pattern.size or None
    spec = LayerKVSpec(key.shape[1], key.shape[3], value.shape[3], window)
    calls.append(AttentionCall(spec, pattern, key.dtype, module))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def _refusal(why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking("v1", "attention", why=why)


AttentionInterface.register(RECORDING_ATTENTION, _record_call)
AttentionMaskInterface.register(RECORDING_ATTENTION, _record_mask)
