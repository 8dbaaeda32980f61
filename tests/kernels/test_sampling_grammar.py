"""The kernel that masks by grammars, against plain torch and token by token."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.sampling import common as sampling_common
from dodona.kernels.sampling.grammar import mask_by_grammar, mask_by_grammar_reference


@pytest.mark.parametrize("fills_gpu", [1, 10**6], ids=["wide", "narrow"])
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1100, 5003])
def test_agrees_with_torch(vocab, device, generator, fills_gpu, monkeypatch):
    monkeypatch.setattr(sampling_common, "PROGRAMS_THAT_FILL_A_GPU", fills_gpu)
    scores = torch.randn(5, vocab, generator=generator, device=device)
    rows = torch.tensor([3, 0, 4], device=device)
    words = -(-vocab // 32)
    bitmask = torch.randint(-(2**31), 2**31, (3, words), generator=generator, device=device).int()
    bitmask[1] = -1  # everything is allowed
    actual, expected = scores.clone(), scores.clone()
    mask_by_grammar(actual, batch_rows=rows, bitmask=bitmask)
    mask_by_grammar_reference(expected, batch_rows=rows, bitmask=bitmask)
    assert torch.equal(actual, expected)
    assert torch.equal(actual[[0, 1, 2]], scores[[0, 1, 2]])
    for entry, row in enumerate(rows.tolist()):
        for token in range(min(vocab, 70)):
            allowed = (int(bitmask[entry, token // 32]) >> (token % 32)) & 1
            assert actual[row, token] == (scores[row, token] if allowed else -torch.inf)


def test_no_rows(device):
    scores = torch.zeros(2, 40, device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    mask_by_grammar(scores, batch_rows=nothing, bitmask=torch.zeros(0, 2, dtype=torch.int32, device=device))
    assert torch.equal(scores, torch.zeros(2, 40, device=device))
