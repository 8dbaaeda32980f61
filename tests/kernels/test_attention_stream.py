"""Decode attention as one stream of keys, against torch, on the GPU: Gluon has no interpreter."""

from __future__ import annotations

import random

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape
from dodona.kernels.attention.decode import (
    decode_attention_from_qkv,
    paged_decode_attention,
    paged_decode_attention_reference,
)
from dodona.kernels.attention.decode_plan import plan_decode_attention
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference
from dodona.kernels.attention.stream import supports_streams
from tests.kernels.test_attention import make_cache, make_new_tokens, make_norm

LENGTHS = [
    [1, 150, 64, 17, 900, 33],
    [1, 1, 1],
    [2048],
    [16, 17, 31, 32, 33, 3000],
    [random.Random(7).randint(1, 700) for _ in range(60)],
]
SHAPES = [(16, 8, 128), (32, 8, 128), (3, 1, 128), (14, 2, 64), (4, 4, 64)]


def stream_plan(sequences, shape, num_programs, *, includes_new_key):
    plan = plan_decode_attention(
        sequences=sequences, shape=shape, row_bytes=2 * shape.head_size, includes_new_key=includes_new_key,
        num_multiprocessors=132, num_programs=num_programs, can_stream=True,
    )  # fmt: skip
    assert plan.tiles.streams
    return plan


@pytest.mark.gpu
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "head_size"), SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} sequences")
@pytest.mark.parametrize("window", [None, 20, 300])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
def test_agrees_with_the_separate_steps(
    lengths, num_q_heads, num_kv_heads, head_size, half, window, norm, hopper, generator
):
    block_size = 16 if num_kv_heads > 1 else 64
    kv_cache, sequences = make_cache(lengths, num_kv_heads, head_size, block_size, half, hopper, generator)
    if len(lengths) > 3:
        sequences.rows[3] = -1  # padding
    count = len(lengths)
    width = (num_q_heads + 2 * num_kv_heads) * head_size
    qkv = torch.randn(count, width, generator=generator, device=hopper).to(half)
    shape = AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5, window)
    before = {
        "qkv": qkv, "norm": make_norm(head_size, half, hopper, generator) if norm else None, "shape": shape,
        "tokens": make_new_tokens(sequences, block_size, head_size, max(lengths), hopper, generator),
    }  # fmt: skip
    queries, expected_cache = qk_norm_rope_kv_write_reference(**before, kv_cache=kv_cache)
    expected = paged_decode_attention_reference(queries, expected_cache, sequences, shape)
    arrivals = torch.zeros(count * num_kv_heads, dtype=torch.int32, device=hopper)
    tolerance = {"rtol": 2e-2, "atol": 2e-2}
    for num_programs in (1, 7, None):
        cache = kv_cache.clone()
        plan = stream_plan(sequences, shape, num_programs, includes_new_key=False)
        actual = decode_attention_from_qkv(
            **before, sequences=sequences, kv_cache=cache, arrivals=arrivals, plan=plan
        )
        torch.testing.assert_close(actual, expected, **tolerance)
        torch.testing.assert_close(cache, expected_cache, equal_nan=True, **tolerance)
        # And with all keys in the cache, as in a step that has prompts too.
        plan = stream_plan(sequences, shape, num_programs, includes_new_key=True)
        actual = paged_decode_attention(
            q=queries, sequences=sequences, shape=shape, kv_cache=expected_cache, arrivals=arrivals, plan=plan
        )
        torch.testing.assert_close(actual, expected, **tolerance)
        assert not arrivals.any()


@pytest.mark.parametrize(
    ("head_size", "dtype"), [(256, torch.bfloat16), (32, torch.bfloat16), (128, torch.float32)]
)
def test_other_models_are_left_to_the_other_kernel(head_size, dtype):
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert not supports_streams(device=device, dtype=dtype, head_size=head_size)
