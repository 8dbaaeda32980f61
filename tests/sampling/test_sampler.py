"""The torch sampler: each stage against brute force in numpy, what it draws against the softmax."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from dodona.kernels.sampling.reference import gumbel_noise, sanitize, uniform_noise
from dodona.runners.sampling.reference import SamplingRow, process_row, prompt_logprobs, sample
from tests.sampling.support import ENORMOUS_ROWS, make_row, random_row

INF = math.inf
SOURCES = Path(__file__).parents[2] / "src"


def brute_force_scores(logits: np.ndarray, row: SamplingRow) -> np.ndarray:
    """Stages 1 to 5, token by token, in float64."""
    params, vocab = row.params, len(logits)
    prompt, output = list(row.prompt_token_ids), list(row.output_token_ids)
    result = np.empty(vocab)
    for token in range(vocab):
        score = float(logits[token])
        forbidden = params.allowed_token_ids is not None and token not in params.allowed_token_ids
        if row.grammar_words is not None:
            forbidden |= not (int(row.grammar_words[token // 32]) >> (token % 32)) & 1
        forbidden |= len(output) < params.min_tokens and token in row.stop_token_ids
        for *prefix, last in row.bad_words_token_ids:
            forbidden |= last == token and output[len(output) - len(prefix) :] == prefix
        score += (params.logit_bias or {}).get(token, 0.0)
        if token in prompt or token in output:
            score = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
        score -= params.frequency_penalty * output.count(token)
        score -= params.presence_penalty * (token in output)
        result[token] = -INF if forbidden else score
    return result


def brute_force_probabilities(logits: np.ndarray, row: SamplingRow) -> np.ndarray:
    """The distribution that a row's token is drawn from."""
    scores = brute_force_scores(logits, row) / row.params.temperature
    weights = np.exp(scores - scores.max())
    weights[weights < row.params.min_p * weights.max() * (1 - 1e-6)] = 0
    if row.params.top_k:
        weights[weights < np.sort(weights)[::-1][row.params.top_k - 1]] = 0
    order = np.argsort(-weights)
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= row.params.top_p * weights.sum()]] = 0
    return weights / weights.sum()


def test_stages_against_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(150):
        vocab = int(rng.integers(20, 90))
        row = random_row(rng, vocab)
        logits = (rng.normal(size=vocab) * 3).astype(np.float32)
        scores = sanitize(torch.tensor(logits))
        process_row(scores, row)
        np.testing.assert_allclose(scores.numpy(), brute_force_scores(logits, row), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.5},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.08},
        {"min_p": 0.02, "top_k": 12, "top_p": 0.9, "temperature": 1.5},
        {"repetition_penalty": 1.5, "frequency_penalty": 0.4, "presence_penalty": -0.3, "output": (5, 5, 9)},
        {"logit_bias": {3: 2.0, 4: -3.0}, "allowed_token_ids": tuple(range(1, 25))},
        {"min_tokens": 2, "stop": (0, 1, 30), "bad_words": ((2,), (5, 6))},
        {"grammar": (0, 3, 4, 5, 31, 32, 39), "vocab": 40, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("varies", ["seed", "position"])
def test_draws_follow_the_distribution(features, varies):
    vocab, draws = 40, 8000
    logits = np.random.default_rng(len(str(features))).normal(size=vocab).astype(np.float32) * 1.5
    row = make_row(**features)
    counts = np.zeros(vocab)
    rows = [
        SamplingRow(
            row.params,
            row.prompt_token_ids if varies == "seed" else _Sized(row.prompt_token_ids, i),
            row.output_token_ids,
            i if varies == "seed" else 1234,
            row.stop_token_ids,
            row.bad_words_token_ids,
            row.grammar_words,
        )
        for i in range(draws)
    ]
    for token in sample(torch.tensor(logits).expand(draws, vocab), rows).token_ids:
        counts[token] += 1
    expected = brute_force_probabilities(logits, row) * draws
    assert counts[expected == 0].sum() == 0
    rare = expected < 5  # chi-square needs some of each: rare tokens are one bin
    observed, predicted = counts[~rare], expected[~rare]
    if expected[rare].sum() > 0:
        observed = np.append(observed, counts[rare].sum())
        predicted = np.append(predicted, expected[rare].sum())
    if len(observed) > 1:
        assert stats.chisquare(observed, predicted).pvalue > 1e-3


class _Sized(tuple):
    """A prompt that claims to be `extra` tokens longer: another position with the same tokens."""

    def __new__(cls, tokens, extra):
        self = super().__new__(cls, tokens)
        self.extra = extra
        return self

    def __len__(self):
        return super().__len__() + self.extra


def test_prompt_tokens_do_not_begin_a_bad_word():
    """A word's first tokens count where they were generated, not where they end the prompt."""
    row = {"temperature": 0.0, "bad_words": ((3, 4), (2, 3, 1))}
    rows = [
        make_row(**row, prompt=(1, 2, 3)),
        make_row(**row, prompt=(1, 2, 3), output=(3,)),
        make_row(**row, prompt=(1, 2, 3), output=(2, 3)),
        make_row(**row, prompt=(1, 2), output=(3,)),
    ]
    assert sample(torch.tensor([[0.0, 1.0, 0.0, 0.0, 5.0]] * 4), rows).token_ids == [4, 1, 0, 1]
    assert sample(torch.tensor([[0.0, 5.0, 0.0, 0.0, 1.0]] * 4), rows).token_ids == [1, 1, 0, 1]


def test_noise_is_uniform_and_independent():
    """Over seeds, positions and tokens each: uniform bits, and no correlation between neighbours."""
    many = torch.arange(20_000)
    still = torch.full_like(many, 77)
    by_seed = uniform_noise(many, still, 3)
    by_high_seed = uniform_noise(many << 32, still, 3)
    by_position = uniform_noise(still, many, 3)
    by_token = uniform_noise(still[:3], many[:3], 20_000).T
    for noise in (by_seed, by_high_seed, by_position, by_token):
        assert float(noise.min()) > 0
        assert float(noise.max()) < 1
        for column in noise.T.numpy():
            assert stats.kstest(column, "uniform").pvalue > 1e-3
            assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.03
        assert np.abs(np.corrcoef(noise.T.numpy()) - np.eye(3)).max() < 0.03
    gumbel = gumbel_noise(many, still, 1)[:, 0].numpy()
    assert stats.kstest(gumbel, "gumbel_r").pvalue > 1e-3


def _fmix32(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("position", [0, 4096, 2**31 - 1])
def test_noise_bits(seed, position):
    """A seed means the same tokens in every release and on every runner; here in integers of Python."""
    vocab = 300
    key0 = _fmix32(seed % 2**32 ^ _fmix32((position + 0x9E3779B9) % 2**32))
    key1 = _fmix32(seed >> 32 ^ _fmix32((key0 + 0x7F4A7C15) % 2**32))
    bits = [_fmix32((_fmix32(token ^ key0) + key1) % 2**32) for token in range(vocab)]
    fractions = (np.array(bits, dtype=np.float32) + np.float32(0.5)) * np.float32(2**-32)
    uniform = np.minimum(fractions, 1 - 2**-24)
    noise = uniform_noise(torch.tensor([seed]), torch.tensor([position]), vocab)[0]
    np.testing.assert_array_equal(noise.numpy(), uniform.astype(np.float32))
    gumbel = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), vocab)[0]
    exact = -np.log(-np.log1p(-uniform.astype(np.float64)))
    np.testing.assert_allclose(gumbel.numpy(), exact, rtol=1e-4, atol=1e-4)


def test_a_seed_gives_its_tokens_whatever_shares_the_batch():
    rng = np.random.default_rng(3)
    vocab = 64
    rows = [random_row(rng, vocab) for _ in range(24)]
    logits = torch.tensor(rng.normal(size=(24, vocab)).astype(np.float32) * 2)
    together = sample(logits, rows)
    for _ in range(3):
        order = rng.permutation(24)[: rng.integers(1, 24)]
        some = sample(logits[order], [rows[i] for i in order])
        assert some.token_ids == [together.token_ids[i] for i in order]
    alone = [sample(logits[i : i + 1], [rows[i]]) for i in range(24)]
    assert [one.token_ids[0] for one in alone] == together.token_ids
    for one, logprobs in zip(alone, together.logprobs, strict=True):
        if logprobs is None:
            assert one.logprobs == [None]
        else:
            assert one.logprobs[0].token_ids == logprobs.token_ids
            assert one.logprobs[0].logprobs == pytest.approx(logprobs.logprobs, abs=1e-5)


def test_seeds_and_positions_matter():
    logits = torch.zeros(400, 1000)
    by_seed = sample(logits, [make_row(seed=i) for i in range(400)]).token_ids
    assert len(set(by_seed)) > 250
    by_position = sample(logits, [make_row(seed=7, prompt=(1,) * i) for i in range(400)]).token_ids
    assert len(set(by_position)) > 250
    far = sample(logits[:2], [make_row(seed=5), make_row(seed=5 + 2**40)]).token_ids
    assert far[0] != far[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_is_argmax_with_the_lowest_id_of_ties(dtype):
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[0, [250, 17, 40]] = 9.0
    tokens = sample(logits, [make_row(temperature=0.0, top_k=5, top_p=0.1, min_p=0.5)] * 5).token_ids
    expected = [int(np.argmax(row)) for row in logits.double().numpy()]
    assert tokens == expected
    assert tokens[0] == 17


def test_logits_are_left_alone():
    logits = torch.randn(2, 30)
    before = logits.clone()
    sample(logits, [make_row(allowed_token_ids=(3,)), make_row(repetition_penalty=2.0)])
    assert torch.equal(logits, before)


def test_logprobs_against_log_softmax():
    generator = torch.Generator().manual_seed(4)
    for dtype in (torch.float32, torch.bfloat16):
        logits = (torch.randn(4, 500, generator=generator) * 5).to(dtype)
        rows = [
            make_row(logprobs=0, temperature=0.3),
            make_row(),
            make_row(logprobs=5, allowed_token_ids=(7, 8)),
            make_row(logprobs=600, repetition_penalty=1.5, top_k=3),
        ]
        result = sample(logits, rows)
        expected = torch.log_softmax(logits.float(), dim=1)
        assert result.logprobs[1] is None
        for i, count in ((0, 0), (2, 5), (3, 500)):
            entry = result.logprobs[i]
            assert entry is not None
            assert len(entry.token_ids) == len(entry.logprobs) == 1 + count
            assert entry.token_ids[0] == result.token_ids[i]
            assert entry.rank == 1 + int((logits[i] > logits[i, result.token_ids[i]]).sum())
            assert list(entry.logprobs) == pytest.approx(
                expected[i, list(entry.token_ids)].tolist(), abs=1e-5
            )
            best = sorted(range(500), key=lambda t, i=i: (-float(logits[i, t]), t))[:count]
            assert list(entry.token_ids[1:]) == best


def test_logprobs_of_given_tokens_against_log_softmax():
    logits = torch.randn(3, 80, generator=torch.Generator().manual_seed(3)) * 3
    given = [79, 0, 33]
    rows = [
        make_row(logprob_token_ids=given),
        make_row(logprobs=2),
        make_row(logprob_token_ids=given, logprobs=1),
    ]
    result = sample(logits, rows)
    expected = torch.log_softmax(logits, dim=1)
    for i, top_n in ((0, 0), (2, 1)):
        entry = result.logprobs[i]
        assert entry.token_ids == (result.token_ids[i], *expected[i].topk(top_n).indices.tolist(), *given)
        assert list(entry.logprobs) == pytest.approx(expected[i, list(entry.token_ids)].tolist(), abs=1e-5)
        assert entry.given_ranks == tuple(1 + int((expected[i] > expected[i, t]).sum()) for t in given)
    assert result.logprobs[1].given_ranks == ()


def test_prompt_logprobs_against_log_softmax():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(8)) * 2
    entries = prompt_logprobs(logits, [4, 49, 0], 2)
    expected = torch.log_softmax(logits, dim=1)
    assert [entry.token_ids[0] for entry in entries] == [4, 49, 0]
    for i, entry in enumerate(entries):
        assert list(entry.logprobs) == pytest.approx(expected[i, list(entry.token_ids)].tolist(), abs=1e-5)
        assert entry.token_ids[1:] == tuple(expected[i].topk(2).indices.tolist())
    assert prompt_logprobs(logits[:0], [], 2) == []


class TestDegenerateRows:
    """Nothing crashes, allowed ids are never broken, and NaN is never drawn."""

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_masks_that_leave_nothing(self, temperature):
        logits = torch.randn(3, 20)
        rows = [
            make_row(temperature=temperature, allowed_token_ids=(9, 5), bad_words=((5,), (9,))),
            make_row(temperature=temperature, stop=(19, 7), min_tokens=3, allowed_token_ids=(7,), top_p=0.5),
            make_row(temperature=temperature, bad_words=tuple((t,) for t in range(20)), stop=(6, 4), top_k=2),
        ]
        assert sample(logits, rows).token_ids == [5, 7, 4]

    @pytest.mark.parametrize("features", [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}])
    def test_unusual_logits(self, features):
        nan = math.nan
        logits = torch.tensor(
            [[nan] * 4, [-INF] * 4, [nan, -INF, 0.5, nan], [0.0, INF, nan, 1.0], [INF, nan, INF, 0.0]]
        )
        result = sample(logits, [make_row(logprobs=4, stop=(3,), **features)] * 5)
        assert result.token_ids[:4] == [-1, -1, 2, 1]  # -1: nothing can be drawn
        assert result.token_ids[4] in (0, 2)
        for entry in result.logprobs:
            assert entry is not None
            assert not any(math.isnan(value) for value in entry.logprobs)

    def test_extreme_temperatures(self):
        logits = torch.tensor([[0.0, 1.0, 3.0e38, -3.0e38]] * 3)
        tokens = sample(logits, [make_row(temperature=t, top_p=0.9) for t in (1e-5, 1e38, 1e300)]).token_ids
        assert tokens[0] == 2
        assert all(0 <= token < 4 for token in tokens)

    def test_enormous_parameters(self):
        logits = torch.tensor([[0.0, 1.0, -2.0, math.nan, 5.0]] * 3)
        assert sample(logits, ENORMOUS_ROWS).token_ids == [4, 1, 1]

    def test_ids_beyond_the_vocabulary_are_passed_over(self):
        row = make_row(
            stop=(2, 99), min_tokens=1, logit_bias={50: 3.0, 1: -100.0}, allowed_token_ids=(1, 2, 3, 70)
        )
        assert sample(torch.zeros(1, 10), [row]).token_ids == [3]

    def test_no_rows(self):
        result = sample(torch.zeros(0, 10), [])
        assert result.token_ids == []
        assert result.logprobs == []

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"\[1 rows, vocab\]; got shape \(2, 10\)"):
            sample(torch.zeros(2, 10), [make_row()])


def test_sampling_needs_no_triton():
    program = "import sys; sys.modules['triton'] = None; import dodona.runners.sampling.reference"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
