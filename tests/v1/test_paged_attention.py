"""Paged attention against dense attention written out row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.runners.interface import LayerKVSpec
from dodona.runners.v1 import attention, step_layout
from dodona.runners.v1.attention import ForwardState, forward_state, paged_attention
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.patterns import CAUSAL, AttentionPattern
from dodona.runners.v1.step_layout import StepLayout

CPU = torch.device("cpu")


def _dense(q, keys, values, first_position, pattern, scaling, softcap, sinks):
    """q [H, n, Dk] over keys, values [H, L, D] of positions 0 .. L-1, by the textbook, in fp64."""
    heads, n, _ = q.shape
    out = torch.empty(heads, n, values.shape[-1], dtype=torch.float64)
    for h in range(heads):
        for i in range(n):
            position = first_position + i
            low = pattern.first_visible(position)
            scores = keys[h, low : position + 1].double() @ q[h, i].double() * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (0.0 if sinks is None else math.exp(sinks[h]))
            out[h, i] = (weights / total) @ values[h, low : position + 1].double()
    return out


@st.composite
def cases(draw):
    size = draw(st.integers(1, 9))
    rows = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 20)), min_size=1, max_size=5))
    patterns = [CAUSAL, AttentionPattern("sliding", size), AttentionPattern("chunked", size)]
    return {
        "rows": rows,
        "pattern": draw(st.sampled_from(patterns)),
        "block_size": draw(st.integers(1, 5)),
        "kv_heads": draw(st.integers(1, 2)),
        "per_kv": draw(st.integers(1, 3)),
        "softcap": draw(st.sampled_from([None, 1.5])),
        "sinks": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from([1 << 26, 40]), st.sampled_from([1 << 16, 8]))
def test_rows_of_any_shape(case, max_scores, max_gathered):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MAX_SCORES", max_scores)
        patch.setattr(step_layout, "MAX_GATHERED_TOKENS", max_gathered)
        _check(**case)


def _check(rows, pattern, block_size, kv_heads, per_kv, softcap, sinks, seed):
    generator = torch.Generator().manual_seed(seed)
    heads, dk, dv, scaling = kv_heads * per_kv, 6, 4, 0.7
    lengths = [n + computed for n, computed in rows]
    blocks = [-(-length // block_size) for length in lengths]
    total_blocks = sum(blocks) + 3
    ids = torch.randperm(total_blocks, generator=generator).tolist()
    tables = np.zeros((len(rows), max(blocks)), dtype=np.int64)
    for i, count in enumerate(blocks):
        tables[i, :count] = [ids.pop() for _ in range(count)]
    spec = LayerKVSpec(kv_heads, dk, dv)
    cache = PagedKVCache([spec], total_blocks, block_size, torch.float32, CPU)
    # What no row has written must never be read, not even with weight zero.
    cache.keys[0].fill_(float("nan"))
    cache.values[0].fill_(float("nan"))

    histories = []
    for i, (_, computed) in enumerate(rows):
        k = torch.randn(lengths[i], kv_heads, dk, generator=generator)
        v = torch.randn(lengths[i], kv_heads, dv, generator=generator)
        histories.append((k, v))
        slots = [int(tables[i, p // block_size]) * block_size + p % block_size for p in range(computed)]
        cache.write(0, torch.tensor(slots, dtype=torch.int64), k[:computed], v[:computed])
    queries = [torch.randn(n, heads, dk, generator=generator) for n, _ in rows]
    s_aux = torch.randn(heads, generator=generator) if sinks else None

    layout = StepLayout([n for n, _ in rows], [c for _, c in rows], tables, block_size, CPU)
    packed = [
        torch.cat(parts).transpose(0, 1)[None]
        for parts in (
            queries,
            [k[c:] for (k, _), (_, c) in zip(histories, rows, strict=True)],
            [v[c:] for (_, v), (_, c) in zip(histories, rows, strict=True)],
        )
    ]
    with forward_state(ForwardState(layout, cache, [pattern])):
        out, _ = paged_attention(
            torch.nn.Module(), *packed, None, scaling=scaling, softcap=softcap, s_aux=s_aux
        )
    assert out.shape == (1, sum(n for n, _ in rows), heads, dv)
    at = 0
    for (n, computed), q, (k, v) in zip(rows, queries, histories, strict=True):
        full_k, full_v = (t.transpose(0, 1).repeat_interleave(per_kv, dim=0) for t in (k, v))
        expected = _dense(q.transpose(0, 1), full_k, full_v, computed, pattern, scaling, softcap, s_aux)
        torch.testing.assert_close(
            out[0, at : at + n].transpose(0, 1).double(), expected, rtol=1e-4, atol=1e-5
        )
        at += n


def test_decode_rows_are_padded_to_less_than_twice_their_length():
    lengths = [1, 2, 60, 65, 100, 129, 300, 1000, 1001, 5]
    tables = np.zeros((len(lengths), 1001), dtype=np.int64)
    layout = StepLayout([1] * len(lengths), [n - 1 for n in lengths], tables, 1, CPU)
    groups = layout.decode_groups(CAUSAL)
    assert sorted(t for group in groups for t in group.tokens.tolist()) == list(range(len(lengths)))
    for group in groups:
        for token in group.tokens.tolist():
            assert group.slots.shape[1] <= max(64, 2 * lengths[token])


def test_windows_bound_what_a_decode_row_gathers():
    tables = np.arange(2000, dtype=np.int64).reshape(2, 1000)
    layout = StepLayout([1, 1], [999, 500], tables, 1, CPU)
    (group,) = layout.decode_groups(AttentionPattern("sliding", 10))
    assert sorted(map(tuple, group.slots.tolist())) == [tuple(range(990, 1000)), tuple(range(1491, 1501))]
    assert group.mask is None


def test_calls_outside_of_a_step_and_wrong_numbers_of_calls_are_errors():
    q = torch.zeros(1, 1, 1, 4)
    with pytest.raises(RuntimeError, match="outside of a step"):
        paged_attention(torch.nn.Module(), q, q, q, None)
    layout = StepLayout([1], [0], np.zeros((1, 1), dtype=np.int64), 1, CPU)
    cache = PagedKVCache([LayerKVSpec(1, 4, 4)] * 2, 1, 1, torch.float32, CPU)

    def attend(recorded: int, made: int) -> None:
        with forward_state(ForwardState(layout, cache, [CAUSAL] * recorded)):
            for _ in range(made):
                paged_attention(torch.nn.Module(), q, q, q, None)

    attend(2, 2)
    with pytest.raises(RuntimeError, match="1 attention calls, but 2"):
        attend(2, 1)
    with pytest.raises(RuntimeError, match="more than 1"):
        attend(1, 2)
