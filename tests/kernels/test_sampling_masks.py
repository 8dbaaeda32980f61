"""Mask, bias and copy kernels against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.kernels.sampling import masks

STATE_ROWS = 6
IDX = [4, 0, 3, 5]


def _idx(device: torch.device) -> torch.Tensor:
    return torch.tensor(IDX, dtype=torch.int32, device=device)


def _same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(vocab=st.integers(1, 200), data=st.data())
def test_token_bits_round_trip(vocab, data):
    ids = data.draw(st.sets(st.integers(-3, vocab + 40)))
    words = masks.pack_token_bits(torch.tensor(sorted(ids), dtype=torch.int64), vocab)
    assert words.shape == ((vocab + 31) // 32,)
    member = masks.unpack_token_bits(words, vocab)
    assert set(member.nonzero().flatten().tolist()) == {t for t in ids if 0 <= t < vocab}


@pytest.mark.parametrize("vocab", [1, 33, 4999])
def test_prepare_scores(vocab, dtype, device, generator):
    logits = (torch.randn(len(IDX), vocab, generator=generator, device=device) * 4).to(dtype)
    logits[0, 0] = math.nan
    logits[1, vocab // 2] = math.inf
    allowed = torch.rand(STATE_ROWS, vocab, generator=generator, device=device) < 0.3
    bits = torch.stack([masks.pack_token_bits(row.nonzero().flatten(), vocab) for row in allowed.cpu()])
    restricted = torch.tensor([1, 1, 0, 0, 1, 0], device=device)
    plain = {"idx_mapping": _idx(device)}
    _same(masks.prepare_scores(logits, **plain), masks.prepare_scores_reference(logits, **plain))
    limited = {**plain, "allowed_bits": bits.to(device), "is_restricted": restricted}
    actual = masks.prepare_scores(logits, **limited)
    _same(actual, masks.prepare_scores_reference(logits, **limited))
    for i, state in enumerate(IDX):
        if restricted[state]:
            assert (actual[i][~allowed[state]] == -math.inf).all()
        else:
            assert (actual[i] > -math.inf).sum() >= vocab - 1


def test_mask_stop_tokens(device, generator):
    vocab = 50
    scores = torch.randn(len(IDX), vocab, generator=generator, device=device)
    arguments = {
        "idx_mapping": _idx(device),
        "positions": torch.tensor([10, 11, 12, 13], device=device),
        "prompt_lens": torch.tensor([11, 9, 9, 9, 9, 9], device=device),
        "min_tokens": torch.tensor([1, 0, 0, 4, 1, 5], device=device),
        "stop_ids": torch.tensor([[i, 20 + i, 49, -1, 50] for i in range(STATE_ROWS)], device=device).int(),
    }
    expected, actual = scores.clone(), scores.clone()
    masks.mask_stop_tokens_reference(expected, **arguments)
    masks.mask_stop_tokens(actual, **arguments)
    _same(actual, expected)
    assert [row.isinf().sum().item() for row in actual] == [0, 3, 3, 3]


def test_more_stop_tokens_than_one_block_holds(device):
    scores = torch.zeros(1, 200, device=device)
    masks.mask_stop_tokens(
        scores,
        idx_mapping=torch.tensor([0], device=device),
        positions=torch.tensor([3], device=device),
        prompt_lens=torch.tensor([3], device=device),
        min_tokens=torch.tensor([1], device=device),
        stop_ids=torch.arange(0, 160, 2, device=device).int()[None],
    )
    assert scores.isinf().nonzero()[:, 1].tolist() == list(range(0, 160, 2))


def test_mask_bad_words(device, generator):
    vocab = 30
    words = {0: [[7]], 3: [[1, 2, 3], [2, 9], [4, 4]], 4: [], 5: [[5, 6], [29], [8, 5, 1], [40]]}
    width = max(sum(map(len, w)) for w in words.values())
    tokens = torch.full((STATE_ROWS, width), masks.NO_TOKEN, dtype=torch.int32)
    ends = torch.full((STATE_ROWS, 4), masks.NO_TOKEN, dtype=torch.int32)
    for state, row_words in words.items():
        flat = [t for word in row_words for t in word]
        tokens[state, : len(flat)] = torch.tensor(flat, dtype=torch.int32)
        for i in range(len(row_words)):
            ends[state, i] = sum(map(len, row_words[: i + 1]))
    history = torch.randint(10, 20, (STATE_ROWS, 16), generator=generator, device=device).int()
    history[3, 6:8] = torch.tensor([1, 2], device=device)  # the ends of [1, 2, 3] and [2, 9] are forbidden
    history[5, 4:6] = torch.tensor([8, 5], device=device)  # 8 is the prompt's, so [8, 5, 1] does not match
    arguments = {
        "idx_mapping": _idx(device),
        "positions": torch.tensor([9, 3, 8, 6], device=device),
        "prompt_lens": torch.tensor([3, 0, 0, 6, 2, 5], device=device),
        "token_ids": history,
        "word_tokens": tokens.to(device),
        "word_ends": ends.to(device),
        "max_words": 4,
    }
    scores = torch.randn(len(IDX), vocab, generator=generator, device=device)
    expected, actual = scores.clone(), scores.clone()
    masks.mask_bad_words_reference(expected, **arguments)
    masks.mask_bad_words(actual, **arguments)
    _same(actual, expected)
    forbidden = [row.isinf().nonzero().flatten().tolist() for row in actual]
    assert forbidden == [[], [7], [3, 9], [6, 29]]


def test_add_logit_bias(device, generator):
    vocab = 700
    scores = torch.randn(len(IDX), vocab, generator=generator, device=device)
    scores[1, 5] = -math.inf
    orders = [torch.randperm(vocab + 9, generator=generator, device=device) for _ in range(STATE_ROWS)]
    ids = torch.stack([order[:300] for order in orders])
    ids[3] = masks.NO_TOKEN
    ids[0, 0] = 5
    arguments = {
        "idx_mapping": _idx(device),
        "bias_ids": ids.int(),
        "bias_values": torch.randn(STATE_ROWS, 300, generator=generator, device=device),
    }
    expected, actual = scores.clone(), scores.clone()
    masks.add_logit_bias_reference(expected, **arguments)
    masks.add_logit_bias(actual, **arguments)
    _same(actual, expected)
    assert actual[1, 5] == -math.inf
    assert torch.equal(actual[2], scores[2])
