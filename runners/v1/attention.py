"""Attention over the paged KV cache, as an implementation of transformers' attention interface.

A model calls it with packed queries, keys and values [1, heads, T, head_size]. The step and the cache come
from the `Forward` of the current forward pass, by a context variable: the modelling code has no argument to
pass them through. The n-th call of a forward pass uses the n-th entry of the cache. `layer_idx` is not used,
because models number their layers in different ways.

`ForwardState` attends in torch, from a layout on the host. `device_forward.DeviceForward` attends by kernels
over state on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.patterns import AttentionPattern
from dodona.runners.v1.step_layout import Chunk, StepLayout

PAGED_ATTENTION = "dodona_paged"
"""Name in transformers' attention registry. It has none in the mask registry, so models make no masks."""

MAX_SCORES = 1 << 26
"""Most attention scores, over all heads, of one product (256 MiB in fp32); longer chunks are split."""


class Forward(ABC):
    """What the attention calls of one forward pass share."""

    def __init__(self, num_calls: int) -> None:
        self.num_calls = num_calls
        """Attention calls of a forward pass, as recorded at load."""
        self.calls = 0

    def next_call(self) -> int:
        """Index, from 0, of the attention call that begins. Raises RuntimeError after the last one."""
        call = self.calls
        if call >= self.num_calls:
            raise RuntimeError(
                f"the model made more than {self.num_calls} attention calls, its number at load"
            )
        self.calls += 1
        return call

    @abstractmethod
    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store this step's keys and values, then attend over each row's own context.

        query [T, H, Dk], key [T, Hkv, Dk], value [T, Hkv, Dv] -> [T, H, Dv]. See `paged_attention` for the
        others.
        """


_current: ContextVar[Forward | None] = ContextVar("dodona_v1_forward", default=None)


@contextmanager
def forward_state(state: Forward) -> Iterator[Forward]:
    """Give `state` to the attention calls that this thread makes inside.

    Raises RuntimeError at the end where the model made fewer calls than at load.
    """
    token = _current.set(state)
    try:
        yield state
    finally:
        _current.reset(token)
    if state.calls != state.num_calls:
        raise RuntimeError(f"the model made {state.calls} attention calls, but {state.num_calls} at load")


def current_forward() -> Forward | None:
    """What the forward pass of this thread was given; None outside of a step."""
    return _current.get()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Store this step's keys and values, then attend over each row's own context.

    query [1, H, T, Dk], key [1, Hkv, T, Dk], value [1, Hkv, T, Dv] -> ([1, T, H, Dv], None). `softcap`:
    scores become softcap * tanh(score / softcap). `s_aux` [H]: one sink logit per head in the softmax's
    denominator. The window is the one recorded for this call at load; the other keyword arguments repeat it
    or are for training.
    """
    state = _current.get()
    if state is None:
        raise RuntimeError(f"attention {PAGED_ATTENTION!r} was called outside of a step")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return state.attend(q, k, v, scaling, softcap, s_aux)[None], None


class ForwardState(Forward):
    """The layout, cache and patterns of a step that is laid out on the host, and its attention in torch."""

    def __init__(
        self,
        layout: StepLayout,
        cache: PagedKVCache,
        patterns: Sequence[AttentionPattern],
        window_layouts: Mapping[int, StepLayout] = MappingProxyType({}),
    ) -> None:
        """window_layouts: by attention call, the layout over its window blocks, where it has some."""
        super().__init__(len(patterns))
        self.layout = layout
        self.window_layouts = window_layouts
        self.cache = cache
        self.patterns = patterns

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Forward.attend`."""
        call = self.next_call()
        layout = self.window_layouts.get(call, self.layout)
        cache, pattern = self.cache, self.patterns[call]
        cache.write(call, layout.slots, key, value)
        tokens, heads, head_size = query.shape
        kv_heads = key.shape[1]
        # [T, Hkv, G, Dk]: query head h reads KV head h // G.
        q = query.view(tokens, kv_heads, heads // kv_heads, head_size)
        if sinks is not None:
            sinks = sinks.reshape(kv_heads, -1)
        out = q.new_empty(*q.shape[:-1], value.shape[-1])

        for group in layout.decode_groups(pattern):
            keys, values = cache.gather(call, group.slots)
            # The G query heads of a KV head take the place of the query positions: nothing is repeated.
            result = _attend(
                q.index_select(0, group.tokens),
                keys.transpose(1, 2),
                values.transpose(1, 2),
                group.mask,
                scaling,
                softcap=softcap,
                sinks=None if sinks is None else sinks[None, :, :, None],
            )
            out.index_copy_(0, group.tokens, result)
        # 0 * NaN is NaN: no query may meet a draft after it. Looked at where there may be drafts only: the
        # host waits for the answer.
        lost = layout.may_verify and not bool(key.isfinite().all() & value.isfinite().all())
        for chunk in layout.chunks:
            span = slice(chunk.start, chunk.start + chunk.num_tokens)
            first = int(pattern.first_visible(chunk.num_computed))
            if chunk.num_computed == 0:
                keys, values = key[span], value[span]
            else:
                keys, values = cache.gather(call, layout.chunk_slots(chunk, first))
            _attend_chunk(
                chunk, pattern, first, q[span], keys, values, scaling, softcap, sinks, out[span], apart=lost
            )
        return out.flatten(1, 2)


def _attend_chunk(
    chunk: Chunk,
    pattern: AttentionPattern,
    first: int,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    *,
    apart: bool,
) -> None:
    """Causal attention of q [n, Hkv, G, Dk] over keys, values [L, Hkv, D] of positions `first` and on.

    apart: compute each query by itself, over the keys up to its own.
    """
    n, kv_heads, per_kv, _ = q.shape
    # [G, Hkv, n, Dk]: G takes the place of the batch, over which keys and values expand without a copy.
    q = q.permute(2, 1, 0, 3)
    keys = keys.transpose(0, 1).expand(per_kv, -1, -1, -1)
    values = values.transpose(0, 1).expand(per_kv, -1, -1, -1)
    sinks = None if sinks is None else sinks.T[:, :, None, None]
    plain = softcap is None and sinks is None
    if plain and chunk.num_computed == 0 and pattern.first_visible(n - 1) == 0:
        out.copy_(_attend(q, keys, values, None, scaling, causal=True).permute(2, 1, 0, 3))
        return
    size = max(1, MAX_SCORES // (keys.shape[2] * kv_heads * per_kv))
    if apart:
        size = 1
    device = q.device
    for begin in range(0, n, size):
        end = min(n, begin + size)
        low = int(pattern.first_visible(chunk.num_computed + begin))
        high = chunk.num_computed + end
        query_positions = torch.arange(chunk.num_computed + begin, high, device=device)[:, None]
        key_positions = torch.arange(low, high, device=device)[None, :]
        mask = pattern.visible(query_positions, key_positions)
        reach = slice(low - first, high - first)
        result = _attend(
            q[:, :, begin:end],
            keys[:, :, reach],
            values[:, :, reach],
            mask,
            scaling,
            softcap=softcap,
            sinks=sinks,
        )
        out[begin:end] = result.permute(2, 1, 0, 3)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    *,
    causal: bool = False,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scaling) v over the last two dimensions; `mask` and `sinks` broadcast to the scores."""
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling)
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.matmul(weights.to(v.dtype), v)


AttentionInterface.register(PAGED_ATTENTION, paged_attention)
