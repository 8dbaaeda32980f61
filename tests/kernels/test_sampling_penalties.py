"""Penalty kernels against plain torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.sampling import penalties
from dodona.kernels.sampling.masks import pack_token_bits


@pytest.mark.parametrize("counts_dtype", [torch.int16, torch.int32])
@pytest.mark.parametrize("vocab", [31, 5003])
def test_apply_penalties(vocab, counts_dtype, device, generator):
    rows, idx = 5, torch.tensor([3, 1, 4, 0], dtype=torch.int32, device=device)
    prompts = [torch.randint(0, vocab, (20,), generator=generator, device=device).cpu() for _ in range(rows)]
    scores = torch.randn(4, vocab, generator=generator, device=device) * 3
    scores[0, :5] = -torch.inf
    counts = torch.randint(0, 5, (rows, vocab), generator=generator, device=device)
    arguments = {
        "idx_mapping": idx,
        "is_penalized": torch.tensor([1, 1, 1, 1, 0], device=device),
        "repetition": torch.tensor([1.3, 1.0, 2.0, 0.7, 5.0], device=device),
        "frequency": torch.tensor([0.3, -0.5, 0.0, 0.0, 1.0], device=device),
        "presence": torch.tensor([-1.0, 2.0, 0.0, 0.5, 1.0], device=device),
        "prompt_bits": torch.stack([pack_token_bits(p, vocab) for p in prompts]).to(device),
        "output_counts": (counts - 3).clamp(min=0).to(counts_dtype),
    }
    expected, actual = scores.clone(), scores.clone()
    penalties.apply_penalties_reference(expected, **arguments)
    penalties.apply_penalties(actual, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(actual[2], scores[2])
    assert not torch.equal(actual[0], scores[0])


@pytest.mark.parametrize("counts_dtype", [torch.int16, torch.int32])
def test_count_tokens(counts_dtype, device, generator):
    rows, vocab, n = 300, 40, 200
    idx = torch.randperm(rows, generator=generator, device=device)[:n].int()
    idx[5] = -1
    tokens = torch.randint(0, vocab, (n,), generator=generator, device=device).int()
    flags = torch.randint(0, 2, (rows,), generator=generator, device=device)
    expected = torch.randint(0, 9, (rows, vocab), generator=generator, device=device).to(counts_dtype)
    actual = expected.clone()
    before = expected.clone()
    penalties.count_tokens_reference(expected, idx_mapping=idx, token_ids=tokens, is_penalized=flags)
    penalties.count_tokens(actual, idx_mapping=idx, token_ids=tokens, is_penalized=flags)
    assert torch.equal(actual, expected)
    assert (actual - before).sum() == sum(int(flags[s]) for s in idx.tolist() if s >= 0)
