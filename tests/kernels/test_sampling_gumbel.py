"""The draw kernel against plain torch."""

from __future__ import annotations

import math

import pytest
import torch

from dodona.kernels.sampling import common as sampling_common
from dodona.kernels.sampling.gumbel import (
    gumbel_sample,
    gumbel_sample_and_append,
    gumbel_sample_reference,
)
from dodona.kernels.state.step_state import update_state_reference

STATE_ROWS = 7


def _inputs(n: int, vocab: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict:
    def integers(high: int, count: int) -> torch.Tensor:
        return torch.randint(0, high, (count,), generator=generator, device=device)

    inverse = torch.tensor([1.0, 0.0, 2.0, 0.5, 1 / 3, 0.0, 10.0], device=device)
    return {
        "logits": (torch.randn(n, vocab, generator=generator, device=device) * 3).to(dtype),
        "idx_mapping": torch.randperm(STATE_ROWS, generator=generator, device=device)[:n].int(),
        "positions": integers(40_000, n).int(),
        "seeds": integers(2**63 - 1, STATE_ROWS),
        "inverse_temperatures": inverse,
        "fallback": integers(vocab, STATE_ROWS),
    }


@pytest.mark.parametrize("cuts", [False, True])
@pytest.mark.parametrize(("n", "vocab"), [(1, 1), (3, 17), (7, 1024), (5, 5003)])
@pytest.mark.parametrize("fills_gpu", [1, 10**6], ids=["wide", "narrow"])
def test_draws_what_torch_draws(n, vocab, cuts, dtype, device, generator, fills_gpu, monkeypatch):
    monkeypatch.setattr(sampling_common, "PROGRAMS_THAT_FILL_A_GPU", fills_gpu)
    for _ in range(2):
        inputs = _inputs(n, vocab, dtype, device, generator)
        cut = torch.full((n,), 1.5, device=device) if cuts else None
        drawn = gumbel_sample(**inputs, cuts=cut)
        assert drawn.dtype == torch.int32
        torch.testing.assert_close(drawn, gumbel_sample_reference(**inputs, cuts=cut), rtol=0, atol=0)


def test_ties_go_to_the_lowest_id(device, dtype):
    logits = torch.zeros(1, 3000, dtype=dtype, device=device)
    logits[0, [700, 2999, 1500]] = 2.0
    drawn = gumbel_sample(
        logits,
        idx_mapping=torch.zeros(1, dtype=torch.int32, device=device),
        positions=torch.zeros(1, dtype=torch.int32, device=device),
        seeds=torch.zeros(1, dtype=torch.int64, device=device),
        inverse_temperatures=torch.zeros(1, device=device),
        fallback=torch.zeros(1, dtype=torch.int64, device=device),
    )
    assert drawn.tolist() == [700]


def test_unusual_logits(device, dtype):
    """NaN is never drawn, +inf always, and a row without anything yields its fallback token."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [[nan, -inf, 0.0, nan], [nan, inf, 0.0, 1.0], [-inf] * 4, [nan] * 4], dtype=dtype, device=device
    ).repeat(2, 1)
    n = logits.shape[0]
    inputs = {
        "idx_mapping": torch.arange(n, device=device),
        "positions": torch.arange(n, device=device),
        "seeds": torch.arange(n, device=device),
        "inverse_temperatures": torch.tensor([1.0] * 4 + [0.0] * 4, device=device),
        "fallback": torch.full((n,), 3, device=device),
    }
    assert gumbel_sample(logits, **inputs).tolist() == [2, 1, 3, 3] * 2
    assert gumbel_sample_reference(logits, **inputs).tolist() == [2, 1, 3, 3] * 2


def test_positions_may_lie_ahead(device, dtype, generator):
    inputs = _inputs(7, 300, dtype, device, generator)
    drawn = gumbel_sample(**inputs, ahead=5)
    assert drawn.tolist() == gumbel_sample(**{**inputs, "positions": inputs["positions"] + 5}).tolist()
    assert drawn.tolist() != gumbel_sample(**inputs).tolist()


def test_padding_rows_change_nothing(device, dtype, generator):
    inputs = _inputs(4, 100, dtype, device, generator)
    alone = gumbel_sample(**inputs)
    padding = {
        "logits": torch.zeros(3, 100, dtype=dtype, device=device),
        "idx_mapping": torch.full((3,), -1, dtype=torch.int32, device=device),
        "positions": torch.zeros(3, dtype=torch.int32, device=device),
    }
    padded = {**inputs, **{name: torch.cat([inputs[name], more]) for name, more in padding.items()}}
    assert gumbel_sample(**padded)[:4].tolist() == alone.tolist()


def test_appending_is_sampling_and_the_state_update(device, dtype, generator):
    """A row that runs past its end, padding, and a ring wider than the batch."""
    inputs = _inputs(4, 3000, dtype, device, generator)
    inputs["positions"] = torch.tensor([3, 0, 12, 19], dtype=torch.int32, device=device)
    inputs["idx_mapping"][1] = -1
    computed = torch.arange(STATE_ROWS, dtype=torch.int32, device=device)
    history = torch.arange(STATE_ROWS * 19, dtype=torch.int32, device=device).view(STATE_ROWS, 19)
    for turn in (2, 0, 1):
        ring = torch.full((3, 6), -5, dtype=torch.int32, device=device)
        sampled = gumbel_sample_reference(**inputs)
        expected = update_state_reference(
            inputs["idx_mapping"], inputs["positions"], None, sampled, computed, history
        )
        gumbel_sample_and_append(
            **inputs, num_computed=computed, token_ids=history, ring=ring,
            turn=torch.tensor([turn], dtype=torch.int32, device=device),
        )  # fmt: skip
        assert computed.tolist() == expected[0].tolist()
        assert history.tolist() == expected[1].tolist()
        slot = ring[turn].tolist()
        assert [slot[0], *slot[2:4]] == [int(sampled[i]) for i in (0, 2, 3)]
        assert slot[4:] == [-5, -5]
        assert (ring[[i for i in range(3) if i != turn]] == -5).all()
        inputs["positions"] = inputs["positions"] - 1
        inputs["positions"][1] = 0
