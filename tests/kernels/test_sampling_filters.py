"""Thresholds of min-p, top-k and top-p: the kernel's search against sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.kernels.sampling import filters as sampling_filters
from dodona.kernels.sampling.filters import filter_cuts, filter_cuts_reference
from tests.kernels.conftest import INTERPRETED


def _arguments(n, device, *, temperature=1.0, min_p=0.0, top_k=0, top_p=1.0):
    def table(value, dtype):
        values = value if isinstance(value, list) else [value] * n
        return torch.tensor(values, dtype=dtype, device=device)

    min_ps = min_p if isinstance(min_p, list) else [min_p] * n
    temperatures = temperature if isinstance(temperature, list) else [temperature] * n
    return {
        "idx_mapping": torch.arange(n, dtype=torch.int32, device=device),
        "inverse_temperatures": table([1 / t if t else 0.0 for t in temperatures], torch.float32),
        "log_min_p": table([math.log(p) if p else -math.inf for p in min_ps], torch.float32),
        "top_k": table(top_k, torch.int64),
        "top_p": table(top_p, torch.float32),
    }


def _kept(logits, cuts, arguments):
    inverse = arguments["inverse_temperatures"][arguments["idx_mapping"].long()]
    scores = logits.float() * inverse[:, None]
    return (scores >= cuts[:, None]) & (logits.float() > -math.inf)  # nobody draws -inf


def _check(logits, arguments):
    """The same tokens as by sorting, but for those within 1e-6 of top-p's edge."""
    actual = _kept(logits, filter_cuts(logits, **arguments), arguments)
    expected = _kept(logits, filter_cuts_reference(logits, **arguments), arguments)
    everything = {**arguments, "top_p": torch.ones_like(arguments["top_p"])}
    unweighed = _kept(logits, filter_cuts_reference(logits, **everything), everything)
    for i, state in enumerate(arguments["idx_mapping"].tolist()):
        if torch.equal(actual[i], expected[i]):
            continue
        top_p = float(arguments["top_p"][state])
        assert top_p < 1, f"row {i}: {actual[i].sum()} kept, by sorting {expected[i].sum()}"
        scores = (logits[i].float() * arguments["inverse_temperatures"][state]).double()
        scores = scores.masked_fill(~unweighed[i], -math.inf)
        weights = torch.softmax(scores, dim=0)
        assert not (actual[i] & ~unweighed[i]).any()
        assert weights[actual[i]].sum() > top_p - 1e-6
        without_last = actual[i] & (scores > scores[actual[i]].min())
        assert weights[without_last].sum() < top_p + 1e-6
    return actual


@pytest.mark.parametrize("vocab", [1, 19, 1024, 20_011])
@pytest.mark.parametrize(
    "parameters",
    [
        {"min_p": 0.05},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 100_000},
        {"top_p": 0.9},
        {"top_p": 1e-6},
        {"top_p": 0.9999},
        {"top_k": 30, "top_p": 0.8, "temperature": 0.6},
        {"min_p": 0.02, "top_k": 300, "top_p": 0.95, "temperature": 1.7},
    ],
    ids=str,
)
def test_keeps_what_sorting_keeps(vocab, parameters, dtype, device, generator):
    logits = (torch.randn(3, vocab, generator=generator, device=device) * 2.5).to(dtype)
    _check(logits, _arguments(3, device, **parameters))


def test_mixed_rows(dtype, device, generator):
    """Rows with different filters, greedy rows and rows without any, in one launch and through a mapping."""
    n, vocab = 6, 3001
    logits = (torch.randn(n, vocab, generator=generator, device=device) * 4).to(dtype)
    arguments = _arguments(
        n,
        device,
        temperature=[1.0, 0.0, 0.5, 1.0, 2.0, 1.0],
        min_p=[0.0, 0.5, 0.0, 0.1, 0.0, 1.0],
        top_k=[0, 3, 17, 0, 50, 0],
        top_p=[1.0, 0.5, 1.0, 1.0, 0.7, 1.0],
    )
    arguments["idx_mapping"] = torch.tensor([5, 3, 1, 0, 4, 2], dtype=torch.int32, device=device)
    cuts = filter_cuts(logits, **arguments)
    assert cuts[2] == -math.inf
    assert cuts[3] == -math.inf
    assert _check(logits, arguments)[0].sum() >= 1


def test_ties_are_kept(device, dtype):
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0, -1.0, 2.0]], dtype=dtype, device=device)
    kept = _check(logits, _arguments(1, device, top_k=2))
    assert kept[0].nonzero().flatten().tolist() == [0, 2, 3, 4, 7]
    kept = _check(logits, _arguments(1, device, top_p=0.5))
    assert kept[0].nonzero().flatten().tolist() == [0, 2, 3, 4, 7]


def test_all_equal(device, dtype):
    logits = torch.zeros(1, 777, dtype=dtype, device=device)
    for parameters in ({"top_k": 3}, {"top_p": 0.1}, {"min_p": 1.0}):
        assert _check(logits, _arguments(1, device, **parameters)).all()


def test_unusual_logits(device):
    """-inf, NaN, huge and tiny values neither hang the search nor are kept wrongly."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [
            [-inf] * 6,
            [nan, -inf, 1.0, 2.0, nan, 0.0],
            [inf, 1.0, 2.0, inf, -inf, 0.0],
            [1e30, 1e-30, -1e30, 1e-38, 0.0, -3.4028234663852886e38],
            [0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40],
        ],
        device=device,
    )
    all_three = {"min_p": 0.5, "top_k": 5, "top_p": 0.9}
    for parameters in ({"top_k": 2}, {"top_k": 4}, {"top_p": 0.5}, all_three):
        arguments = _arguments(5, device, **parameters)
        cuts = filter_cuts(logits, **arguments)
        assert cuts[0] == -inf
        finite = logits.nan_to_num(nan=-inf, posinf=1e30, neginf=-inf)
        kept = (finite >= cuts[:, None]) & (finite > -inf)
        expected = (finite >= filter_cuts_reference(logits, **arguments)[:, None]) & (finite > -inf)
        for i in range(5):
            assert torch.equal(kept[i], expected[i]), (parameters, i)


DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def _row(kind: str, vocab: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(vocab, generator=generator)
    places = torch.randperm(vocab, generator=generator)
    row = {
        "trained": normal * 3,
        "flat": normal * 0.3,
        "rounded": (normal * 3).bfloat16().float(),
        "flat and rounded": (normal * 0.3).bfloat16().float(),
        "few values": (normal * 2).round(),
        "constant": torch.full((vocab,), -2.5),
        "huge": torch.sign(normal) * 10.0 ** (normal * 10).clamp(-30, 30),
        "sorted": (normal * 2).sort().values,
        "spike": normal,
        "tied": normal,
        "masked": normal,
        "far below": normal * 5,
    }[kind].clone()
    if kind == "spike":
        row[places[0]] = 40.0
    elif kind == "tied":
        row[places[: vocab // 2]] = 0.25
    elif kind == "masked":
        row[places[vocab // 9 + 1 :]] = -math.inf
    elif kind == "far below":
        row[places[vocab // 2 + 1 :]] = -1e30
    return row


KINDS = [
    "trained", "flat", "rounded", "flat and rounded", "few values", "constant", "huge", "sorted", "spike",
    "tied", "masked", "far below",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    vocab=st.sampled_from([1, 2, 63, 64, 65, 1000, 2048, 5000]),
    seed=st.integers(0, 1 << 30),
    min_p=st.sampled_from([0.0, 0.0, 0.001, 0.3, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 50, 79, 80, 500, 4999, 5000, 9999]),
    top_p=st.sampled_from([1.0, 0.9, 1e-7, 0.1, 0.5, 0.99, 0.99999, 1 - 2**-24]),
    temperature=st.sampled_from([1.0, 0.6, 3.0, 0.01]),
    room=st.sampled_from([16, 300, sampling_filters.ROOM]),
)
def test_any_row(kind, vocab, seed, min_p, top_k, top_p, temperature, room):
    """Whatever the distribution and the filters, and whether or not what is near the threshold is copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_filters, "ROOM", room)
        logits = _row(kind, vocab, seed)[None].to(DEVICE)
        parameters = {"min_p": min_p, "top_k": top_k, "top_p": top_p, "temperature": temperature}
        _check(logits, _arguments(1, DEVICE, **parameters))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 5000},
        {"top_k": 25_000},
        {"top_p": 0.9},
        {"top_p": 0.999999},
        {"top_k": 15_000, "top_p": 0.8},
        {"min_p": 0.001, "top_p": 0.95},
    ],
    ids=str,
)
def test_more_than_can_be_copied(kind, parameters, device):
    """Rows of which more is kept than there is room for, some with more ties than that at the threshold."""
    vocab = 30_011
    logits = _row(kind, vocab, 7)[None].to(device)
    _check(logits, _arguments(1, device, **parameters))


@pytest.mark.parametrize("parameters", [{"top_k": 12_000}, {"top_p": 0.6}, {"top_k": 20_000, "top_p": 0.5}])
def test_ten_thousand_ties_at_the_threshold(parameters, device, generator):
    logits = torch.randn(1, 30_000, generator=generator, device=device) * 0.1
    logits[0, 5000:15_000] = 0.03125
    logits[0, 15_000:25_000] -= 1.0
    kept = _check(logits, _arguments(1, device, **parameters))
    assert kept[0, 5000:15_000].all()
    assert not kept.all()


def test_few_finite_logits(device):
    """Fewer than k, in a row that is otherwise masked."""
    logits = torch.full((2, 20_000), -math.inf, device=device)
    logits[0, 17_003] = 1.0
    logits[1, ::1000] = torch.arange(20, device=device) * 0.1
    for parameters in ({"top_k": 50}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 50, "top_p": 0.7}):
        arguments = _arguments(2, device, **parameters)
        kept = _check(logits, arguments)
        assert kept[0].sum() == 1
        assert 1 <= kept[1].sum() <= min(20, parameters.get("top_k", 20))


def test_same_cuts_each_time(device, generator):
    logits = torch.randn(4, 20_011, generator=generator, device=device)
    arguments = _arguments(4, device, top_p=[0.3, 0.9, 0.999, 0.9], top_k=[0, 0, 0, 9000])
    first = filter_cuts(logits, **arguments)
    assert torch.equal(first, filter_cuts(logits, **arguments))
    wide = torch.zeros(4, 20_500, device=device)
    wide[:, :20_011] = logits
    assert torch.equal(first, filter_cuts(wide[:, :20_011], **arguments))


def test_reference_against_numpy():
    """The reference itself, against a loop over sorted probabilities."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        vocab = int(rng.integers(2, 60))
        logits = np.round(rng.normal(size=vocab) * 2, 1).astype(np.float32)  # rounded: many ties
        min_p, top_k = float(rng.choice([0.0, 0.1])), int(rng.integers(0, 20))
        top_p = float(rng.uniform(0.1, 1))
        kept = logits >= logits.max() + (np.float32(math.log(min_p)) if min_p else -np.inf)
        if 0 < top_k < kept.sum():
            kept &= logits >= np.sort(logits[kept])[::-1][top_k - 1]
        weights = np.where(kept, np.exp(logits.astype(np.float64) - logits.max()), 0)
        weights /= weights.sum()
        total = 0.0
        for value in np.unique(logits[kept])[::-1]:
            total += weights[logits == value].sum()
            if total >= top_p:
                kept &= logits >= value
                break
        arguments = _arguments(1, torch.device("cpu"), min_p=min_p, top_k=top_k, top_p=top_p)
        cut = filter_cuts_reference(torch.tensor(logits)[None], **arguments)
        assert (logits >= cut.numpy()[0]).tolist() == kept.tolist()
