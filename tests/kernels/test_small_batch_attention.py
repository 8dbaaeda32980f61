"""Attention of small batches against the separate steps it replaces."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens
from dodona.kernels.attention.attended_linear import attended_linear, attended_linear_reference
from dodona.kernels.attention.decode import paged_decode_attention_reference
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference
from dodona.kernels.attention.small_batch import (
    SmallBatchTiles,
    most_entries,
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
    offsets = torch.tensor([0, 1], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"max_offset: expected less than 32 .*, got 32"):
        small_batch_attention(**case, offsets=offsets, max_offset=32)
    parts = small_batch_attention_parts(**case)
    with pytest.raises(ValueError, match="expected those of one sequence, got 2"):
        attended_linear(
            parts=parts, weight=torch.zeros(8, 16, device=device), residual=torch.zeros(1, 8, device=device)
        )


@pytest.mark.parametrize(
    ("shape", "norm", "window", "most"),
    [
        ((1, 1, 16), True, None, 9), ((4, 2, 16), False, 20, 9), ((3, 1, 32), True, 3, 9),
        ((8, 2, 128), True, None, 4), ((8, 2, 128), False, None, 9), ((8, 1, 64), True, 5, 9),
    ],
    ids=str,
)  # fmt: skip
def test_entries_of_one_row_see_each_other(shape, norm, window, most, dtype, device, tolerance, generator):
    """A row's last token and its drafts, whose keys are in the projection: as if they were written before."""
    entries = min(most, most_entries(shape[0] // shape[1], shape[2] * dtype.itemsize))
    counts = [min(3, entries), 1, min(5, entries), min(9, entries), 1]
    lengths = [[70, 71, 72], [1], [2, 3, 4, 5, 6], list(range(14, 23)), [40]]  # a block has 16 tokens
    lengths = [own[:count] for own, count in zip(lengths, counts, strict=True)]
    assert_entries_agree(shape, lengths, norm, window, None, dtype, device, tolerance, generator)


@pytest.mark.parametrize(
    ("shape", "window", "tiles"),
    [
        ((4, 2, 16), None, SmallBatchTiles(16, 2, 3, 2)), ((4, 1, 16), 20, SmallBatchTiles(16, 2, 1, 4)),
        ((8, 1, 16), None, SmallBatchTiles(16, 2, 2, 4)), ((6, 1, 16), 3, SmallBatchTiles(16, 2, 2, 2)),
        ((2, 1, 16), None, SmallBatchTiles(16, 2, 2, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_programs_share_a_group_of_entries(shape, window, tiles, device, generator):
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    lengths = [[50, 51, 52], [1, 2], [40]]
    assert_entries_agree(shape, lengths, True, window, tiles, torch.float32, device, tolerance, generator)


def assert_entries_agree(shape, lengths, norm, window, tiles, dtype, device, tolerance, generator):
    """`lengths`: tokens of each entry, by row. The last entry is padding."""
    counts, seq_lens = [len(own) for own in lengths], [length for own in lengths for length in own]
    case, _, _ = make_case(
        shape, seq_lens, norm, window, dtype, device, generator, padded=[len(seq_lens) - 1]
    )
    sequences = case.pop("sequences")
    offsets = [i for count in counts for i in range(count)]
    lasts = [sum(counts[: i + 1]) - 1 for i, count in enumerate(counts) for _ in range(count)]
    sequences.rows[:-1] = sequences.rows[lasts][:-1]
    tokens = make_new_tokens(sequences, 16, shape[2], 700, device, generator)
    case["tokens"] = NewTokens(tokens.positions, tokens.slots, case["tokens"].cos_sin)
    queries, expected_cache = qk_norm_rope_kv_write_reference(**case)
    expected = paged_decode_attention_reference(queries, expected_cache, sequences, case["shape"])
    arrivals = torch.zeros(len(offsets) * shape[1], dtype=torch.int32, device=device)
    actual = small_batch_attention(
        **case,
        sequences=sequences,
        arrivals=arrivals,
        tiles=tiles,
        offsets=torch.tensor(offsets, dtype=torch.int32, device=device),
        max_offset=max(offsets),
    )
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(case["kv_cache"], expected_cache, equal_nan=True, **tolerance)
    assert not arrivals.any()
