"""Log-probability kernels against torch."""

from __future__ import annotations

import math

import pytest
import torch

from dodona.kernels.sampling import common as sampling_common
from dodona.kernels.sampling.logprobs import (
    MOST_BY_KERNEL,
    given_logprobs,
    given_logprobs_reference,
    token_logprobs,
    token_logprobs_reference,
)


def _check(logits, token_ids, top_n, rows=None):
    actual = token_logprobs(logits, token_ids, top_n=top_n, rows=rows)
    expected = token_logprobs_reference(logits, token_ids, top_n=top_n, rows=rows)
    assert torch.equal(actual.token_ids, expected.token_ids)
    assert torch.equal(actual.ranks, expected.ranks)
    torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-5, atol=2e-5)
    return actual


@pytest.mark.parametrize("top_n", [0, 1, 5, 20, MOST_BY_KERNEL + 3])
@pytest.mark.parametrize("vocab", [1, 37, 1024, 5003])
@pytest.mark.parametrize("fills_gpu", [1, 10**6], ids=["wide", "narrow"])
def test_agrees_with_torch(vocab, top_n, dtype, device, generator, fills_gpu, monkeypatch):
    monkeypatch.setattr(sampling_common, "PROGRAMS_THAT_FILL_A_GPU", fills_gpu)
    n = 4
    logits = (torch.randn(n, vocab, generator=generator, device=device) * 4).to(dtype)
    token_ids = torch.randint(0, vocab, (n,), generator=generator, device=device)
    actual = _check(logits, token_ids, top_n)
    assert actual.token_ids.shape == (n, 1 + min(top_n, vocab))
    full = torch.log_softmax(logits.float(), dim=1)
    torch.testing.assert_close(actual.logprobs, full.gather(1, actual.token_ids.long()), rtol=1e-5, atol=2e-5)


def test_some_rows_only(dtype, device, generator):
    logits = torch.randn(6, 2050, generator=generator, device=device).to(dtype)
    token_ids = torch.randint(0, 2050, (6,), generator=generator, device=device).int()
    rows = torch.tensor([4, 1, 5], device=device)
    for top_n in (3, MOST_BY_KERNEL + 1):
        actual = _check(logits, token_ids, top_n, rows)
        assert actual.token_ids[:, 0].tolist() == token_ids[rows].tolist()


@pytest.mark.parametrize("vocab", [1, 37, 5003])
def test_tokens_by_id(vocab, dtype, device, generator):
    logits = (torch.randn(4, vocab, generator=generator, device=device) * 4).to(dtype)
    rows = torch.tensor([2, 2, 0, 2, 3, 0, 0], dtype=torch.int32, device=device)
    token_ids = torch.randint(0, vocab, (7,), generator=generator, device=device).int()
    actual = given_logprobs(logits, rows=rows, token_ids=token_ids)
    expected = given_logprobs_reference(logits, rows=rows, token_ids=token_ids)
    assert actual.token_ids.tolist() == token_ids[:, None].tolist() == expected.token_ids.tolist()
    assert actual.ranks.tolist() == expected.ranks.tolist()
    full = torch.log_softmax(logits.float(), dim=1)[rows.long(), token_ids.long()]
    torch.testing.assert_close(actual.logprobs[:, 0], full, rtol=1e-5, atol=2e-5)
    empty = rows[:0]
    assert given_logprobs(logits, rows=empty, token_ids=empty).logprobs.shape == (0, 1)


def test_ties_and_ranks(device, dtype):
    logits = torch.tensor([[1.0, 3.0, 0.0, 3.0, -0.0, 2.0]], dtype=dtype, device=device)
    actual = _check(logits, torch.tensor([2], device=device), 6)
    assert actual.token_ids.tolist() == [[2, 1, 3, 5, 0, 2, 4]]
    assert actual.ranks.tolist() == [5]


@pytest.mark.parametrize("top_n", [2, 4])
def test_unusual_logits(top_n, device):
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[-inf] * 4, [nan, 1.0, -inf, 0.0], [inf, 1.0, 2.0, inf]], device=device)
    actual = _check(logits, torch.tensor([1, 1, 0], device=device), top_n)
    assert not actual.logprobs.isnan().any()
    assert actual.logprobs[0].tolist() == [-inf] * (1 + top_n)
    assert actual.logprobs[2, 0].item() == pytest.approx(-math.log(2))
