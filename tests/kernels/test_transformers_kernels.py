"""Kernels that stand in for parts of transformers' models: KV writes, attention of any pattern, norms, gates
and rotary embeddings; each beside its reference."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.any_pattern import (
    ScoreRule,
    any_pattern_attention,
    any_pattern_attention_reference,
)
from dodona.kernels.attention.arguments import PagedSequences
from dodona.kernels.attention.kv_write import kv_write, kv_write_reference
from dodona.kernels.attention.rotate import rotate, rotate_reference
from dodona.kernels.linear.activation import ACTIVATIONS, gated, gated_reference
from dodona.kernels.linear.rms_norm import rms_norm_reference, rms_norm_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK_SIZE = 4


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize(("heads", "size_k", "size_v"), [(2, 16, 16), (3, 24, 12)])
def test_kv_write(heads: int, size_k: int, size_v: int) -> None:
    key = randn(5, heads, size_k * 2)[..., :size_k]
    value = randn(heads, 5, size_v).transpose(0, 1)
    slots = torch.tensor([9, -1, 0, 4, 3], dtype=torch.int32, device=DEVICE)
    whole = randn(3, heads * BLOCK_SIZE * (size_k + size_v))
    k_cache = whole[:, : heads * BLOCK_SIZE * size_k].view(3, heads, BLOCK_SIZE, size_k)
    v_cache = whole[:, heads * BLOCK_SIZE * size_k :].view(3, heads, BLOCK_SIZE, size_v)
    expected = kv_write_reference(key, value, slots, k_cache, v_cache)
    kv_write(key=key, value=value, slots=slots, k_cache=k_cache, v_cache=v_cache)
    torch.testing.assert_close((k_cache, v_cache), expected, rtol=0, atol=0)


RULES = {
    "causal": ScoreRule(0.3),
    "sliding": ScoreRule(0.3, "sliding", 6),
    "chunked": ScoreRule(0.3, "chunked", 5),
    "softcap": ScoreRule(0.5, softcap=2.0),
    "sliding-softcap": ScoreRule(0.5, "sliding", 3, softcap=1.5),
}


@pytest.mark.parametrize("has_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "size_k", "size_v"), [(4, 2, 16, 16), (3, 1, 24, 12)], ids=["even", "odd"]
)
def test_any_pattern(
    rule: ScoreRule, has_sinks: bool, q_heads: int, kv_heads: int, size_k: int, size_v: int
) -> None:
    # Row 2 decodes, an entry is padding, row 0 is a chunk with context, row 1 begins.
    rows = torch.tensor([2, -1, 0, 1], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([75, 0, 19, 11], dtype=torch.int32, device=DEVICE)
    query_start = torch.tensor([0, 1, 2, 9, 20], dtype=torch.int32, device=DEVICE)
    table = torch.randperm(60)[: 3 * 20].view(3, 20).to(DEVICE, torch.int32)
    k_cache, v_cache = (randn(60, kv_heads, BLOCK_SIZE, size) for size in (size_k, size_v))
    q = randn(q_heads, 20, size_k).transpose(0, 1)
    sequences = PagedSequences(table, rows, lengths)
    sinks = randn(q_heads) if has_sinks else None
    found = any_pattern_attention(
        q=q, k_cache=k_cache, v_cache=v_cache, sequences=sequences, query_start=query_start,
        max_query_len=11, rule=rule, sinks=sinks,
    )  # fmt: skip
    expected = any_pattern_attention_reference(q, k_cache, v_cache, sequences, query_start, rule, sinks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [16, 24, 3000])
def test_rms_norm_rows(hidden: int) -> None:
    x, weight = randn(7, 2, hidden)[:, 0], randn(hidden)
    for offset in (0.0, 1.0):
        found = rms_norm_rows(x=x, weight=weight, eps=1e-3, offset=offset)
        torch.testing.assert_close(found, rms_norm_reference(x, weight + offset, 1e-3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(activation: str) -> None:
    gate, up = randn(5, 2, 40)[:, 0] * 3, randn(5, 40)
    found = gated(gate=gate, up=up, activation=activation)
    torch.testing.assert_close(found, gated_reference(gate, up, activation), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("q_heads", "kv_heads", "size"), [(4, 2, 16), (3, 1, 24), (5, 5, 8)])
def test_rotate(q_heads: int, kv_heads: int, size: int) -> None:
    q = randn(3, q_heads, size)
    k = randn(kv_heads, 3, size).transpose(0, 1)
    cos, sin = randn(3, size), randn(3, size)
    torch.testing.assert_close(
        rotate(q=q, k=k, cos=cos, sin=sin), rotate_reference(q, k, cos, sin), rtol=1e-5, atol=1e-5
    )
