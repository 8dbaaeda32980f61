"""The torch sampler at its edges: which tokens can be drawn at all, and the tokens of rows that have none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dodona.kernels.sampling import reference
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.reference import NO_TOKEN, grammar_fallback_ids, sample
from tests.sampling.support import grammar_words, make_row

PROBABILITIES = (0.4, 0.3, 0.2, 0.08, 0.02)
LOGITS = torch.log(torch.tensor(PROBABILITIES))


def drawn(draws: int = 400, logits: torch.Tensor = LOGITS, **features: Any) -> set[int]:
    rows = [make_row(seed=seed, **features) for seed in range(draws)]
    return set(sample(logits.expand(draws, -1), rows).token_ids)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.41}, {0, 1}),
        ({"top_p": 0.95}, {0, 1, 2, 3}),
        ({"min_p": 0.45}, {0, 1, 2}),
        ({"min_p": 0.8}, {0}),
        ({"top_k": 3, "top_p": 0.5}, {0, 1}),
        ({"top_k": 2, "min_p": 0.1}, {0, 1}),
        ({"min_p": 0.15, "top_p": 0.7}, {0, 1}),
        ({"temperature": 0.0}, {0}),
        ({"allowed_token_ids": [1, 4]}, {1, 4}),
        ({"min_tokens": 1, "stop": (0, 1)}, {2, 3, 4}),
        ({"min_tokens": 1, "stop": (0, 1), "output": (3,)}, {0, 1, 2, 3, 4}),
        ({"bad_words": ((0,), (3, 1))}, {1, 2, 3, 4}),
        ({"bad_words": ((3, 1),), "output": (3,)}, {0, 2, 3, 4}),
        ({"logit_bias": {0: -100.0, 1: -100.0}}, {2, 3, 4}),
        ({"logit_bias": {4: 100.0}}, {4}),
        ({"grammar": (2, 4), "vocab": 5}, {2, 4}),
        ({"presence_penalty": 2.0, "frequency_penalty": 2.0, "output": (0,) * 9, "top_k": 4}, {1, 2, 3, 4}),
    ],
    ids=str,
)
def test_which_tokens_can_be_drawn(features: dict[str, Any], expected: set[int]) -> None:
    assert drawn(**features) == expected


@pytest.mark.parametrize(
    ("filters", "cut"),
    [
        ((-math.inf, 0, 1.0), -math.inf),
        ((math.log(0.5), 0, 1.0), math.log(0.5)),
        ((-math.inf, 1, 1.0), 0.0),
        ((-math.inf, 2, 1.0), -0.5),
        ((-math.inf, 4, 1.0), -200.0),
        ((-math.inf, 9, 1.0), -200.0),
        ((-math.inf, 0, 0.3), 0.0),
        ((-math.inf, 0, 0.6), -0.5),
        ((-math.inf, 0, 0.999999), -1.0),
        ((-math.inf, 2, 0.7), -0.5),
        ((-0.7, 0, 0.1), 0.0),
    ],
)
def test_the_least_score_that_is_kept(filters: tuple[float, int, float], cut: float) -> None:
    """The last score has a weight of zero in fp32, and is kept all the same where no filter asks for less."""
    scores = torch.tensor([[-1.0, 0.0, -200.0, -0.5]])
    log_min_p, top_k, top_p = (torch.tensor([value]) for value in filters)
    assert reference.thresholds(scores, log_min_p, top_k, top_p).tolist() == pytest.approx([cut])


def test_gumbel_noise_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The series for small draws has six terms: below 1/16 the rest is less than 1e-8 of the whole."""
    uniform = np.concatenate([np.geomspace(1e-10, 0.0625, 1000), np.linspace(0.0625, 1 - 2**-24, 1000)])
    monkeypatch.setattr(reference, "uniform_noise", lambda *_: torch.tensor(uniform))
    still = torch.zeros(1, dtype=torch.int64)
    found = reference.gumbel_noise(still, still, len(uniform))
    np.testing.assert_allclose(found.numpy(), -np.log(-np.log1p(-uniform)), rtol=0, atol=2e-8)


def test_keys_order_neighbouring_numbers_and_equals_by_their_ids() -> None:
    one, inf = np.float32(1), np.float32(math.inf)
    neighbours = [np.nextafter(one, -inf), one, np.nextafter(one, inf)]
    upwards = [-inf, -1e30, *(-value for value in neighbours[::-1]), -0.0, 0.0, *neighbours, 1e30]
    for numbers in (upwards, upwards[::-1], [*upwards, *upwards]):
        keys = reference.order_keys(torch.tensor(np.array([numbers], dtype=np.float32)))[0]
        expected = sorted(range(len(numbers)), key=lambda i, numbers=numbers: (-numbers[i], i))
        assert keys.argsort(descending=True).tolist() == expected
        assert [0xFFFFFFFF - (key & 0xFFFFFFFF) for key in keys.tolist()] == list(range(len(numbers)))


def test_the_greatest_draw_is_below_one() -> None:
    """This seed's bits for token 443 at position 0 are 2**32 - 48, which fp32 rounds to 2**32."""
    seeds, positions = torch.tensor([26534]), torch.tensor([0])
    assert float(reference.uniform_noise(seeds, positions, 444)[0, 443]) == 1 - 2**-24
    assert float(reference.gumbel_noise(seeds, positions, 444)[0, 443]) == pytest.approx(
        -math.log(24 * math.log(2))
    )


@pytest.mark.parametrize("chunk", [1, 5, 10, 34, 35])
def test_rows_are_drawn_in_chunks_of_noise(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    scores = torch.zeros(7, 5)
    scores[5] = -math.inf
    rows = torch.arange(7)
    inverse = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 1.0, 1.0])
    whole = reference.gumbel_argmax(scores, inverse, rows, rows, 90 + rows).tolist()
    assert (len(whole), whole[1], whole[5]) == (7, 0, 95)
    monkeypatch.setattr(reference, "_NOISE_CHUNK", chunk)
    assert reference.gumbel_argmax(scores, inverse, rows, rows, 90 + rows).tolist() == whole


def test_a_position_counts_prompt_and_output() -> None:
    rows = [make_row(prompt=(1, 2, 3, 4, 5)), make_row(prompt=(1, 2), output=(3, 4, 5))]
    assert [row.position for row in rows] == [5, 5]


@pytest.mark.parametrize("token", [-1, 5, 300])
def test_ids_that_are_no_tokens_are_passed_over(token: int) -> None:
    masked = {
        "logit_bias": {abs(token) + 4: 100.0, 0: -100.0},
        "min_tokens": 1,
        "stop": (token, 1),
        "bad_words": ((token,), (2,)),
        "repetition_penalty": 2.0,
        "prompt": (token,),
    }
    assert drawn(**masked) == {3, 4}


def test_equal_tokens_at_the_cut_are_all_kept() -> None:
    even = torch.zeros(4)
    for features in ({"top_k": 2}, {"top_p": 0.3}):
        assert drawn(logits=even, **features) == {0, 1, 2, 3}


@pytest.mark.parametrize("token", [0, 1, 31, 32, 33, 62, 63, 64, 95])
def test_the_lowest_token_of_a_grammar(token: int) -> None:
    words = grammar_words({token, 95}, 96)[None]
    assert grammar_fallback_ids(words, [SamplingParams()]).tolist() == [token]
    # Among the allowed ids, where the grammar allows one of these.
    allowed = SamplingParams(allowed_token_ids=[95, 30])
    assert grammar_fallback_ids(words, [allowed]).tolist() == [95]
    both = SamplingParams(allowed_token_ids=[95, token])
    assert grammar_fallback_ids(words, [both]).tolist() == [token]
    others = SamplingParams(allowed_token_ids=[5, 300])
    assert grammar_fallback_ids(words, [others]).tolist() == [token]
    bias = {token: -100.0, 95: -100.0}
    masked = torch.full((1, 96), -math.inf)
    masked[0, 94] = 0.0
    assert sample(masked, [make_row(grammar={token, 95}, vocab=96, logit_bias=bias)]).token_ids == [token]


def test_a_grammar_that_allows_nothing_gives_token_zero() -> None:
    words = np.zeros((1, 3), dtype=np.int32)
    assert grammar_fallback_ids(words, [SamplingParams()]).tolist() == [0]


def test_logits_that_say_nothing_give_no_token_whatever_masks_there_are() -> None:
    for value in (math.nan, -math.inf):
        lost = torch.full((1, 8), value)
        for row in (
            make_row(),
            make_row(stop=(5, 3), logprobs=1),
            make_row(stop=(5, 3), min_tokens=2),
            make_row(stop=(5, 3), allowed_token_ids=[7, 6]),
            make_row(bad_words=((4,),), temperature=0.0),
            make_row(grammar={4, 2}, vocab=8),
        ):
            assert sample(lost, [row]).token_ids == [NO_TOKEN]


def test_masks_that_leave_nothing_give_the_fallback_token() -> None:
    logits = torch.full((1, 8), math.nan)
    logits[0, 3] = 0.0
    assert sample(logits, [make_row(stop=(5, 3), min_tokens=2)]).token_ids == [3]
    assert sample(logits, [make_row(stop=(5, 3), allowed_token_ids=[7, 6])]).token_ids == [6]


def test_wrong_shapes_are_named() -> None:
    for logits, rows in ((LOGITS, [make_row()]), (LOGITS[None], []), (LOGITS.expand(2, -1), [make_row()])):
        with pytest.raises(ValueError, match=rf"logits must be \[{len(rows)} rows, vocab\]"):
            sample(logits, rows)
    assert sample(torch.zeros(0, 5), []).token_ids == []
