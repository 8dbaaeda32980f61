"""Attention of small batches against the separate steps it replaces."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape
from dodona.kernels.attention.attended_linear import attended_linear, attended_linear_reference
from dodona.kernels.attention.decode import paged_decode_attention_reference
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference
from dodona.kernels.attention.small_batch import (
    SmallBatchTiles,
    small_batch_attention,
    small_batch_attention_parts,
)
from tests.kernels.test_attention import make_cache, make_new_tokens, make_norm

SHAPES = [(1, 1, 16), (4, 2, 16), (3, 1, 32), (8, 1, 64), (8, 2, 128), (4, 2, 256)]


def make_case(shape, seq_lens, norm, window, dtype, device, generator, padded=()):
    """Arguments of attention, its result, and the cache after it."""
    num_q_heads, num_kv_heads, head_size = shape
    kv_cache, sequences = make_cache(seq_lens, num_kv_heads, head_size, 16, dtype, device, generator)
    for entry in padded:
        sequences.rows[entry] = -1
    count = len(seq_lens)
    qkv = torch.randn(count, (num_q_heads + 2 * num_kv_heads) * head_size, generator=generator, device=device)
    case = {
        "qkv": qkv.to(dtype), "norm": make_norm(head_size, dtype, device, generator) if norm else None,
        "tokens": make_new_tokens(sequences, 16, head_size, 700, device, generator), "kv_cache": kv_cache,
        "shape": AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5, window),
    }  # fmt: skip
    queries, expected_cache = qk_norm_rope_kv_write_reference(**case)
    expected = paged_decode_attention_reference(queries, expected_cache, sequences, case["shape"])
    return case | {"sequences": sequences}, expected, expected_cache


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("norm", "window", "tiles"),
    [
        (True, None, SmallBatchTiles(32, 2, 4)),
        (False, 20, SmallBatchTiles(16, 1, 1)),
        (True, 70, SmallBatchTiles(16, 4, 16)),
    ],
    ids=str,
)
def test_agrees_with_the_separate_steps(shape, norm, window, tiles, dtype, device, tolerance, generator):
    case, expected, expected_cache = make_case(
        shape, [1, 150, 64, 17, 300, 2], norm, window, dtype, device, generator, padded=[3]
    )
    arrivals = torch.zeros(6 * shape[1], dtype=torch.int32, device=device)
    actual = small_batch_attention(**case, arrivals=arrivals, tiles=tiles)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(case["kv_cache"], expected_cache, equal_nan=True, **tolerance)
    assert not arrivals.any()
    assert (actual[3] == 0).all()


@pytest.mark.parametrize(("shape", "sharers"), [((8, 2, 16), 2), ((8, 1, 64), 4), ((6, 1, 32), 2)], ids=str)
def test_programs_share_a_group(shape, sharers, device, generator):
    case, expected, expected_cache = make_case(
        shape, [1, 60, 17], True, None, torch.float32, device, generator, padded=[2]
    )
    arrivals = torch.zeros(3 * shape[1], dtype=torch.int32, device=device)
    actual = small_batch_attention(**case, arrivals=arrivals, tiles=SmallBatchTiles(16, 2, 16, sharers))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case["kv_cache"], expected_cache, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert not arrivals.any()
    assert (actual[2] == 0).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_batches(batch, device, generator):
    lengths = [33, 5, 97, 128, 1, 250, 16, 64][:batch]
    case, expected, _ = make_case((4, 2, 32), lengths, True, None, torch.float32, device, generator)
    torch.testing.assert_close(small_batch_attention(**case), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("seq_len", "window", "tiles"),
    [
        (1, None, SmallBatchTiles(32, 2, 4)), (2, None, None), (40, 20, SmallBatchTiles(16, 1, 1)),
        (300, None, SmallBatchTiles(32, 2, 4)), (300, 90, SmallBatchTiles(16, 4, 16)),
    ],
    ids=str,
)  # fmt: skip
def test_parts_meet_in_the_output_projection(
    shape, window, seq_len, tiles, dtype, device, tolerance, generator
):
    case, expected, expected_cache = make_case(shape, [seq_len], True, window, dtype, device, generator)
    parts = small_batch_attention_parts(**case, tiles=tiles)
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
    parts = small_batch_attention_parts(**case)
    residual = torch.randn(1, 24, generator=generator, device=device)
    weight = torch.randn(24, 128, generator=generator, device=device)
    torch.testing.assert_close(
        attended_linear(parts=parts, weight=weight, residual=residual.clone()), residual
    )
    torch.testing.assert_close(case["kv_cache"], cache, equal_nan=True)


def test_larger_groups_and_batches_are_refused(device, generator):
    case, _, _ = make_case((9, 1, 16), [3], False, None, torch.float32, device, generator)
    with pytest.raises(ValueError, match="expected at most 8 per KV head, got 9"):
        small_batch_attention(**case)
    case, _, _ = make_case((1, 1, 16), [3, 4], False, None, torch.float32, device, generator)
    parts = small_batch_attention_parts(**case)
    with pytest.raises(ValueError, match="expected those of one sequence, got 2"):
        attended_linear(
            parts=parts, weight=torch.zeros(8, 16, device=device), residual=torch.zeros(1, 8, device=device)
        )
