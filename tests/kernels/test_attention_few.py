"""Attention of few sequences against the separate steps it replaces."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.decode import paged_decode_attention_reference
from dodona.kernels.attention.few import (
    FewTiles,
    few_sequences_attention,
    few_sequences_attention_parts,
)
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference
from dodona.kernels.linear.attended_linear import attended_linear, attended_linear_reference
from tests.kernels.test_attention import make_cache

SHAPES = [(1, 1, 16), (4, 2, 16), (3, 1, 32), (8, 1, 64), (8, 2, 128), (4, 2, 256)]


def make_case(shape, seq_lens, norm, window, dtype, device, generator, padded=()):
    """Arguments of attention, its result, and the cache after it."""
    num_q_heads, num_kv_heads, head_size = shape
    kv_cache, table, rows, lens = make_cache(seq_lens, num_kv_heads, head_size, 16, dtype, device, generator)
    for entry in padded:
        rows[entry] = -1
    count, positions = len(seq_lens), lens - 1
    slots = torch.where(
        rows >= 0, table[rows.clamp(min=0).long(), (positions // 16).long()] * 16 + positions % 16, -1
    ).int()
    qkv = torch.randn(count, (num_q_heads + 2 * num_kv_heads) * head_size, generator=generator, device=device)
    weights = [torch.rand(head_size, generator=generator, device=device).to(dtype) + 0.5 for _ in range(2)]
    before = {
        "qkv": qkv.to(dtype), "positions": positions, "slots": slots, "num_q_heads": num_q_heads,
        "cos_sin": torch.randn(700, head_size, generator=generator, device=device),
        "q_weight": weights[0] if norm else None, "k_weight": weights[1] if norm else None, "eps": 1e-6,
        "kv_cache": kv_cache,
    }  # fmt: skip
    attend = {
        "block_table": table,
        "rows": rows,
        "seq_lens": lens,
        "scale": head_size**-0.5,
        "window": window,
    }
    queries, expected_cache = qk_norm_rope_kv_write_reference(**before)
    expected = paged_decode_attention_reference(queries, expected_cache, **attend)
    return before | attend, expected, expected_cache


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("norm", "window", "tiles"),
    [(True, None, FewTiles(32, 2, 4)), (False, 20, FewTiles(16, 1, 1)), (True, 70, FewTiles(16, 4, 16))],
    ids=str,
)
def test_agrees_with_the_separate_steps(shape, norm, window, tiles, dtype, device, tolerance, generator):
    case, expected, expected_cache = make_case(
        shape, [1, 150, 64, 17, 300, 2], norm, window, dtype, device, generator, padded=[3]
    )
    arrivals = torch.zeros(6 * shape[1], dtype=torch.int32, device=device)
    actual = few_sequences_attention(**case, arrivals=arrivals, tiles=tiles)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(case["kv_cache"], expected_cache, equal_nan=True, **tolerance)
    assert not arrivals.any()
    assert (actual[3] == 0).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_batches(batch, device, generator):
    lengths = [33, 5, 97, 128, 1, 250, 16, 64][:batch]
    case, expected, _ = make_case((4, 2, 32), lengths, True, None, torch.float32, device, generator)
    torch.testing.assert_close(few_sequences_attention(**case), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("seq_len", "window", "tiles"),
    [
        (1, None, FewTiles(32, 2, 4)), (2, None, None), (40, 20, FewTiles(16, 1, 1)),
        (300, None, FewTiles(32, 2, 4)), (300, 90, FewTiles(16, 4, 16)),
    ],
    ids=str,
)  # fmt: skip
def test_parts_meet_in_the_output_projection(
    shape, window, seq_len, tiles, dtype, device, tolerance, generator
):
    case, expected, expected_cache = make_case(shape, [seq_len], True, window, dtype, device, generator)
    parts = few_sequences_attention_parts(**case, tiles=tiles)
    torch.testing.assert_close(case["kv_cache"], expected_cache, equal_nan=True, **tolerance)
    inner = shape[0] * shape[2]
    weight = (torch.randn(37, inner, generator=generator, device=device) / inner**0.5).to(dtype)
    residual = torch.randn(1, 37, generator=generator, device=device).to(dtype)
    expected = (residual.float() + expected.float().view(1, -1) @ weight.float().T).to(dtype)
    torch.testing.assert_close(attended_linear_reference(parts, weight, residual), expected, **tolerance)
    for n, num_warps in ((8, 8), (4, 2)):
        out = residual.clone()
        assert attended_linear(parts=parts, weight=weight, residual=out, n=n, num_warps=num_warps) is out
        torch.testing.assert_close(out, expected, **tolerance)


def test_parts_of_a_padded_entry_add_nothing(device, generator):
    case, _, cache = make_case((4, 2, 32), [70], True, None, torch.float32, device, generator, padded=[0])
    case["qkv"][:] = float("nan")
    parts = few_sequences_attention_parts(**case)
    residual = torch.randn(1, 24, generator=generator, device=device)
    weight = torch.randn(24, 128, generator=generator, device=device)
    torch.testing.assert_close(
        attended_linear(parts=parts, weight=weight, residual=residual.clone()), residual
    )
    torch.testing.assert_close(case["kv_cache"], cache, equal_nan=True)


def test_larger_groups_and_batches_are_refused(device, generator):
    case, _, _ = make_case((9, 1, 16), [3], False, None, torch.float32, device, generator)
    with pytest.raises(ValueError, match="expected at most 8 per KV head, got 9"):
        few_sequences_attention(**case)
    case, _, _ = make_case((1, 1, 16), [3, 4], False, None, torch.float32, device, generator)
    parts = few_sequences_attention_parts(**case)
    with pytest.raises(ValueError, match="expected those of one sequence, got 2"):
        attended_linear(
            parts=parts, weight=torch.zeros(8, 16, device=device), residual=torch.zeros(1, 8, device=device)
        )
