"""Paged attention against a plain computation, and against torch's own on contiguous keys."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.decode import (
    decode_attention_from_qkv,
    paged_decode_attention,
    paged_decode_attention_reference,
)
from dodona.kernels.attention.decode_plan import (
    SHARED_MEMORY,
    choose_decode_tiles,
    plan_decode_attention,
    plan_reference,
)
from dodona.kernels.attention.prefill import paged_prefill_attention, paged_prefill_attention_reference
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference


def make_cache(seq_lens, num_kv_heads, head_size, block_size, dtype, device, generator):
    """A cache whose blocks are handed out in random order to state rows in random order: the cache, and the
    sequences."""
    per_row = [-(-max(n, 1) // block_size) for n in seq_lens]
    num_blocks = sum(per_row) + 3
    shape = (num_blocks, 2, num_kv_heads, block_size, head_size)
    kv_cache = torch.randn(shape, generator=generator, device=device).to(dtype)
    order = torch.randperm(num_blocks, generator=generator, device=device).int()
    num_rows = len(seq_lens) + 2
    rows = torch.randperm(num_rows, generator=generator, device=device)[: len(seq_lens)].int()
    table = torch.full((num_rows, max(per_row) + 1), num_blocks + 999, dtype=torch.int32, device=device)
    used = 0
    for row, count in zip(rows.tolist(), per_row, strict=True):
        table[row, :count] = order[used : used + count]
        used += count
    unused = order[used:].long()
    kv_cache[unused] = float("nan")
    lens = torch.tensor(seq_lens, dtype=torch.int32, device=device)
    return kv_cache, PagedSequences(table, rows, lens)


def make_new_tokens(sequences, block_size, head_size, max_len, device, generator):
    """Each sequence's last token, and angles of positions below `max_len`; padded entries have no slot."""
    rows, positions = sequences.rows, sequences.seq_lens - 1
    blocks = sequences.block_table[rows.clamp(min=0).long(), (positions // block_size).long()]
    slots = torch.where(rows >= 0, blocks * block_size + positions % block_size, -1).int()
    cos_sin = torch.randn(max_len, head_size, generator=generator, device=device)
    return NewTokens(positions, slots, cos_sin)


def make_norm(head_size, dtype, device, generator):
    """Norm weights between 0.5 and 1.5."""
    weights = [torch.rand(head_size, generator=generator, device=device).to(dtype) + 0.5 for _ in range(2)]
    return QKNorm(*weights, eps=1e-6)


def make_plan(case, num_programs, *, includes_new_key=True):
    """A plan for the sequences and the shape of `case`."""
    return plan_decode_attention(
        sequences=case["sequences"], shape=case["shape"], row_bytes=512, includes_new_key=includes_new_key,
        num_multiprocessors=1, num_programs=num_programs,
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 1, 20, 300])
@pytest.mark.parametrize("includes_new_key", [True, False])
def test_plans_count_the_tiles_that_are_seen(window, includes_new_key, device):
    rows = torch.tensor([5, 0, -1, 3, 2, 7], dtype=torch.int32, device=device)
    lens = torch.tensor([1, 16, 99, 17, 1000, 0], dtype=torch.int32, device=device)
    table = torch.empty((8, 0), dtype=torch.int32, device=device)
    case = {"sequences": PagedSequences(table, rows, lens), "shape": AttentionShape(1, 1, 128, 1.0, window)}
    plan = make_plan(case, 3, includes_new_key=includes_new_key)
    assert plan.tile_ends.tolist() == plan_reference(rows, lens, plan.tiles.n, window, includes_new_key)


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads", "head_size"),
    [(4, 2, 16), (3, 1, 32), (14, 2, 64), (8, 8, 128), (2, 1, 256)],
)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("num_programs", [1, 3, 50])
def test_decode_agrees_with_torch(
    num_q_heads, num_kv_heads, head_size, window, num_programs, dtype, device, tolerance, generator
):
    seq_lens = [1, 150, 64, 17, 900]
    kv_cache, sequences = make_cache(seq_lens, num_kv_heads, head_size, 16, dtype, device, generator)
    q = torch.randn(5, num_q_heads, head_size, generator=generator, device=device).to(dtype)
    shape = AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5, window)
    case = {"q": q, "kv_cache": kv_cache, "sequences": sequences, "shape": shape}
    actual = paged_decode_attention(**case, plan=make_plan(case, num_programs))
    torch.testing.assert_close(actual, paged_decode_attention_reference(**case), **tolerance)


@pytest.mark.parametrize("num_programs", [1, 8])
def test_padded_decode_entries_are_zero(num_programs, device, generator):
    kv_cache, sequences = make_cache([40, 9], 2, 32, 16, torch.float32, device, generator)
    sequences.rows[1] = -1
    q = torch.randn(2, 4, 32, generator=generator, device=device)
    q[1] = float("nan")
    case = {"q": q, "kv_cache": kv_cache, "sequences": sequences, "shape": AttentionShape(4, 2, 32, 0.2)}
    actual = paged_decode_attention(**case, plan=make_plan(case, num_programs))
    expected = paged_decode_attention_reference(**case)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert (actual[1] == 0).all()


@pytest.mark.parametrize("block_size", [16, 64])
def test_decode_block_sizes(block_size, device, generator):
    kv_cache, sequences = make_cache([130, 5], 1, 64, block_size, torch.float32, device, generator)
    case = {
        "q": torch.randn(2, 7, 64, generator=generator, device=device), "kv_cache": kv_cache,
        "sequences": sequences, "shape": AttentionShape(7, 1, 64, 0.125),
    }  # fmt: skip
    torch.testing.assert_close(
        paged_decode_attention(**case, plan=make_plan(case, 2)),
        paged_decode_attention_reference(**case),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "head_size"), [(4, 2, 16), (3, 1, 32), (8, 2, 128)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("num_programs", [1, 5, 60])
def test_decode_from_qkv_agrees_with_the_separate_steps(
    num_q_heads, num_kv_heads, head_size, norm, window, num_programs, dtype, device, tolerance, generator
):
    seq_lens = [1, 150, 64, 17, 600, 33]
    kv_cache, sequences = make_cache(seq_lens, num_kv_heads, head_size, 16, dtype, device, generator)
    sequences.rows[3] = -1  # padding
    count = len(seq_lens)
    shape = AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5, window)
    qkv = torch.randn(count, (num_q_heads + 2 * num_kv_heads) * head_size, generator=generator, device=device)
    before = {
        "qkv": qkv.to(dtype), "norm": make_norm(head_size, dtype, device, generator) if norm else None,
        "tokens": make_new_tokens(sequences, 16, head_size, 700, device, generator),
        "kv_cache": kv_cache, "shape": shape,
    }  # fmt: skip
    queries, expected_cache = qk_norm_rope_kv_write_reference(**before)
    expected = paged_decode_attention_reference(queries, expected_cache, sequences, shape)
    arrivals = torch.zeros(count * num_kv_heads, dtype=torch.int32, device=device)
    case = before | {"sequences": sequences}
    plan = make_plan(case, num_programs, includes_new_key=False)
    actual = decode_attention_from_qkv(**case, arrivals=arrivals, plan=plan)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(kv_cache, expected_cache, equal_nan=True, **tolerance)
    assert not arrivals.any()


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads", "head_size"),
    [(4, 2, 16), (3, 1, 32), (14, 2, 64), (4, 4, 128), (2, 1, 256)],
)
@pytest.mark.parametrize("window", [None, 20])
def test_prefill_agrees_with_torch(
    num_q_heads, num_kv_heads, head_size, window, dtype, device, tolerance, generator
):
    # (cached or earlier tokens, chunk): a whole prompt, a chunk after a prefix, one token, an unaligned pair.
    contexts, chunks = [0, 100, 33, 7], [70, 40, 1, 13]
    seq_lens = [a + b for a, b in zip(contexts, chunks, strict=True)]
    kv_cache, sequences = make_cache(seq_lens, num_kv_heads, head_size, 16, dtype, device, generator)
    starts = torch.tensor([0, *torch.tensor(chunks).cumsum(0).tolist()], dtype=torch.int32, device=device)
    q = torch.randn(sum(chunks), num_q_heads, head_size, generator=generator, device=device).to(dtype)
    shape = AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5, window)
    case = {"q": q, "kv_cache": kv_cache, "sequences": sequences, "query_start": starts, "shape": shape}
    actual = paged_prefill_attention(**case, max_query_len=max(chunks))
    torch.testing.assert_close(actual, paged_prefill_attention_reference(**case), **tolerance)


def test_prefill_is_scaled_dot_product_attention(device, generator):
    kv_cache, sequences = make_cache([50], 2, 32, 16, torch.float32, device, generator)
    q = torch.randn(50, 4, 32, generator=generator, device=device)
    actual = paged_prefill_attention(
        q=q, kv_cache=kv_cache, sequences=sequences,
        query_start=torch.tensor([0, 50], dtype=torch.int32, device=device),
        max_query_len=50, shape=AttentionShape(4, 2, 32, 32**-0.5),
    )  # fmt: skip
    blocks = sequences.block_table[sequences.rows[0].item(), :4].long()
    k, v = kv_cache[blocks].permute(1, 2, 0, 3, 4).reshape(2, 1, 2, 64, 32)[:, :, :, :50]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, is_causal=True, enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_prefill_leaves_other_tokens_of_out_alone(device, generator):
    kv_cache, sequences = make_cache([9], 1, 16, 16, torch.float32, device, generator)
    out = torch.full((12, 2, 16), 7.0, device=device)
    paged_prefill_attention(
        q=torch.randn(12, 2, 16, generator=generator, device=device), kv_cache=kv_cache,
        sequences=sequences, query_start=torch.tensor([2, 11], dtype=torch.int32, device=device),
        max_query_len=9, shape=AttentionShape(2, 1, 16, 0.25), out=out,
    )  # fmt: skip
    assert (out[:2] == 7).all()
    assert (out[11:] == 7).all()
    assert (out[2:11] != 7).all()


@pytest.mark.parametrize("pairs", [1, 1000, 5000])
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("head_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("can_stream", [False, True])
def test_programs_fit_on_a_multiprocessor(can_stream, head_size, element_size, pairs):
    can_stream = can_stream and head_size * element_size <= 256  # what `supports_streams` says
    tiles = choose_decode_tiles(head_size * element_size, pairs, can_stream=can_stream)
    assert tiles.n & (tiles.n - 1) == 0
    assert tiles.n >= 16  # a matrix product's least
    stages = tiles.num_stages if tiles.streams else tiles.num_stages - 1
    buffers = stages * 2 * tiles.n * head_size * element_size
    assert 1 <= tiles.programs * buffers <= SHARED_MEMORY
