"""Attention of fresh prompts, and how it shares a batch with the paged kernel."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape
from dodona.kernels.attention.fresh import (
    fresh_prefill_attention,
    fresh_prefill_attention_reference,
    supports_fresh_prefill,
)
from dodona.kernels.attention.prefill import paged_prefill_attention, paged_prefill_attention_reference
from tests.kernels.test_attention import make_cache

FRESH = [[1], [64], [129], [5, 128, 129, 300], [2048] * 4, [1000, 17, 640]]
SHAPES = [(16, 8, 128), (2, 2, 128), (8, 2, 128), (14, 2, 64), (4, 4, 64)]


def starts_of(lengths: list[int], device: torch.device, first: int = 0) -> torch.Tensor:
    """[len(lengths) + 1]: where packed sequences start, the first at `first`."""
    ends = torch.tensor(lengths).cumsum(0) + first
    return torch.tensor([first, *ends.tolist()], dtype=torch.int32, device=device)


def fresh_case(starts, seq_lens, num_q_heads, num_kv_heads, head_size, dtype, generator, tokens=None):
    device = starts.device
    width = (num_q_heads + 2 * num_kv_heads) * head_size
    tokens = tokens or int(starts[-1])
    return {
        "qkv": torch.randn(tokens, width, generator=generator, device=device).to(dtype),
        "query_start": starts,
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32, device=device),
        "shape": AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5),
    }


def launch(case, max_query_len, out):
    device = out.device
    return fresh_prefill_attention(
        **case,
        max_query_len=max_query_len,
        num_multiprocessors=torch.cuda.get_device_properties(device).multi_processor_count,
        out=out,
    )


def poisoned(case, head_size):
    shape = (case["qkv"].shape[0], case["shape"].num_q_heads, head_size)
    return torch.full(shape, float("nan"), dtype=case["qkv"].dtype, device=case["qkv"].device)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Relative to the whole: single entries come from sums that nearly cancel."""
    actual, expected = actual.double(), expected.double()
    assert (actual - expected).norm() < 1e-2 * expected.norm()
    assert (actual - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "head_size"), SHAPES)
@pytest.mark.parametrize("lengths", FRESH, ids=str)
def test_fresh_prompts_agree_with_torch(
    lengths, num_q_heads, num_kv_heads, head_size, half, hopper, generator
):
    # Tokens before and after belong to nobody here; their numbers must not reach the others.
    starts = starts_of(lengths, hopper, first=3)
    case = fresh_case(
        starts, lengths, num_q_heads, num_kv_heads, head_size, half, generator, tokens=int(starts[-1]) + 200
    )
    before = case["qkv"].clone()
    out = launch(case, max(lengths), poisoned(case, head_size))
    mine = slice(3, int(starts[-1]))
    expected = fresh_prefill_attention_reference(**{**case, "qkv": before.float()})
    assert_near(out[mine], expected[mine])
    assert out[:3].isnan().all()
    assert out[int(starts[-1]) :].isnan().all()
    assert torch.equal(case["qkv"], before)


@pytest.mark.gpu
@pytest.mark.parametrize("head_size", [64, 128])
def test_large_scores_stay_finite(head_size, hopper, generator):
    lengths = [400]
    case = fresh_case(starts_of(lengths, hopper), lengths, 4, 2, head_size, torch.bfloat16, generator)
    case["qkv"][:, : 6 * head_size] *= 40
    out = launch(case, 400, poisoned(case, head_size))
    expected = fresh_prefill_attention_reference(**{**case, "qkv": case["qkv"].float()})
    assert_near(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("head_size", [64, 128])
def test_both_kernels_together_serve_a_mixed_batch(head_size, hopper, generator):
    contexts, lengths = [0, 100, 0, 33, 7, 0], [300, 40, 1, 500, 129, 257]
    seq_lens = [a + b for a, b in zip(contexts, lengths, strict=True)]
    starts = starts_of(lengths, hopper)
    case = fresh_case(starts, seq_lens, 8, 4, head_size, torch.bfloat16, generator)
    kv_cache, sequences = make_cache(seq_lens, 4, head_size, 16, torch.bfloat16, hopper, generator)
    heads = case["qkv"].view(case["qkv"].shape[0], 16, head_size)
    for i, row in enumerate(sequences.rows.tolist()):
        position = torch.arange(contexts[i], seq_lens[i], device=hopper)
        block = sequences.block_table[row, position // 16].long()
        mine = heads[starts[i] : starts[i + 1]]
        kv_cache[block, 0, :, position % 16] = mine[:, 8:12]
        kv_cache[block, 1, :, position % 16] = mine[:, 12:]
    paged = {
        "q": heads[:, :8], "kv_cache": kv_cache, "sequences": sequences, "query_start": starts,
        "shape": case["shape"],
    }  # fmt: skip
    out = launch(case, 300, poisoned(case, head_size))
    for i, context in enumerate(contexts):
        assert bool(out[starts[i] : starts[i + 1]].isnan().all()) == (context > 0)
    paged_prefill_attention(**paged, max_query_len=500, skip_fresh=True, out=out)
    assert_near(out, paged_prefill_attention_reference(**paged))


@pytest.mark.parametrize("contexts", [[0, 30, 0, 5], [9, 30, 1, 5], [0, 0, 0, 0]], ids=str)
def test_the_paged_kernel_skips_fresh_sequences(contexts, device, generator):
    lengths = [20, 40, 1, 13]
    seq_lens = [a + b for a, b in zip(contexts, lengths, strict=True)]
    kv_cache, sequences = make_cache(seq_lens, 2, 32, 16, torch.float32, device, generator)
    starts = starts_of(lengths, device)
    case = {
        "q": torch.randn(sum(lengths), 4, 32, generator=generator, device=device), "kv_cache": kv_cache,
        "sequences": sequences, "query_start": starts, "shape": AttentionShape(4, 2, 32, 0.2),
    }  # fmt: skip
    out = torch.full((sum(lengths), 4, 32), 7.0, device=device)
    paged_prefill_attention(**case, max_query_len=40, skip_fresh=True, out=out)
    expected = paged_prefill_attention_reference(**case)
    for i, context in enumerate(contexts):
        mine = slice(int(starts[i]), int(starts[i + 1]))
        if context:
            torch.testing.assert_close(out[mine], expected[mine], rtol=1e-5, atol=1e-5)
        else:
            assert (out[mine] == 7).all()


def test_the_reference_is_scaled_dot_product_attention(device, generator):
    case = fresh_case(starts_of([20, 33], device), [20, 40], 4, 2, 32, torch.float32, generator)
    actual = fresh_prefill_attention_reference(**case)
    q, k, v = case["qkv"][:20].view(20, 8, 32).transpose(0, 1)[None].split([4, 2, 2], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(actual[:20], expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert (actual[20:] == 0).all()  # the second sequence has context


@pytest.mark.parametrize(
    ("dtype", "head_size", "window"),
    [(torch.float32, 128, None), (torch.bfloat16, 80, None), (torch.bfloat16, 128, 4096)],
)
def test_other_models_are_not_supported(dtype, head_size, window, device):
    assert not supports_fresh_prefill(device=device, dtype=dtype, head_size=head_size, window=window)


def test_a_window_is_refused(device):
    with pytest.raises(ValueError, match="expected no window, got one of 64 keys"):
        fresh_prefill_attention(
            qkv=torch.zeros(5, 8 * 64, device=device), query_start=starts_of([5], device),
            seq_lens=torch.tensor([5], dtype=torch.int32, device=device), max_query_len=5,
            shape=AttentionShape(4, 2, 64, 0.125, window=64), num_multiprocessors=1,
        )  # fmt: skip


def test_a_cpu_is_not_supported():
    assert not supports_fresh_prefill(
        device=torch.device("cpu"), dtype=torch.bfloat16, head_size=128, window=None
    )
