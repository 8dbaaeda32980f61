"""Kernels of steps that verify drafts, against loops in Python: inputs, acceptance, penalties, the state's
update."""

from __future__ import annotations

import random

import pytest
import torch

from dodona.kernels.sampling import acceptance, gumbel, penalties
from dodona.kernels.sampling.masks import pack_token_bits
from dodona.kernels.state import step_state

VOCAB, LENGTH, MOST = 7, 24, 4


class Step:
    """Rows with 0 to 4 drafts, half of which are what is drawn; padding at the end."""

    def __init__(self, device: torch.device, seed: int) -> None:
        rng = random.Random(seed)
        rows = rng.sample(range(6), 4)
        computed = [rng.randint(1, 15) for _ in range(6)]
        entry_rows: list[int] = []
        offsets: list[int] = []
        positions: list[int] = []
        drawn: list[int] = []
        self.history = torch.tensor([[rng.randrange(VOCAB) for _ in range(LENGTH)] for _ in range(6)])
        for row in rows:
            for offset in range(1 + rng.randint(0, MOST)):
                position = computed[row] + offset + 1
                draft = int(self.history[row, position])
                entry_rows.append(row)
                offsets.append(offset)
                positions.append(position)
                drawn.append(draft if rng.random() < 0.7 else rng.randrange(-1, VOCAB))

        def ints(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.history = self.history.int().to(device)
        self.computed = ints(computed)
        self.rows, self.offsets = ints([*entry_rows, -1, -1]), ints([*offsets, 0, 0])
        self.positions, self.drawn = ints([*positions, 0, 0]), ints([*drawn, 0, 0])

    def kept(self) -> torch.Tensor:
        return acceptance.count_kept_tokens(
            self.drawn, idx_mapping=self.rows, positions=self.positions, offsets=self.offsets,
            history=self.history, max_offset=MOST,
        )  # fmt: skip


@pytest.fixture(params=[1, 2, 3])
def step(request: pytest.FixtureRequest, device: torch.device) -> Step:
    return Step(device, request.param)


def test_positions_follow_one_another_in_a_row(step: Step, device: torch.device) -> None:
    count, tables = len(step.rows), torch.arange(18, dtype=torch.int32, device=device).view(6, 3)
    common = {
        "rows": step.rows, "query_start": torch.arange(count + 1, dtype=torch.int32, device=device),
        "num_computed": step.computed, "token_ids": step.history, "block_table": tables,
    }  # fmt: skip
    outputs = {name: torch.zeros(count, dtype=torch.int32, device=device)
               for name in ("input_ids", "positions", "slots", "seq_lens")}  # fmt: skip
    step_state.prepare_inputs(**common, block_size=8, **outputs, offsets=step.offsets)
    expected = step_state.prepare_inputs_reference(
        **{name: tensor.cpu() for name, tensor in common.items()}, block_size=8, num_tokens=count,
        offsets=step.offsets.cpu(),
    )  # fmt: skip
    for name, reference in zip(("input_ids", "positions", "slots", "seq_lens"), expected, strict=True):
        assert outputs[name].tolist() == reference.tolist()
    assert outputs["seq_lens"].tolist() == step.positions.tolist()


def test_acceptance_ends_at_the_first_difference(step: Step, device: torch.device) -> None:
    kept = step.kept()
    expected = acceptance.count_kept_tokens_reference(
        step.drawn, idx_mapping=step.rows, positions=step.positions, offsets=step.offsets,
        history=step.history,
    )  # fmt: skip
    assert kept.tolist() == expected.tolist()
    assert kept.max() > 1
    arguments = {"rows": step.rows, "seq_lens": step.positions, "sampled": step.drawn, "num_kept": kept}
    ring, turn = (
        torch.zeros(2, 32, 2, dtype=torch.int32, device=device),
        torch.ones(1, dtype=torch.int32, device=device),
    )
    for index in (None, torch.arange(len(step.rows), dtype=torch.int32, device=device)):
        state = {"num_computed": step.computed.clone(), "token_ids": step.history.clone()}
        reference = step_state.update_state_reference(**arguments, sample_index=index, **state)
        step_state.update_state(**arguments, sample_index=index, **state, ring=ring, turn=turn)
        assert state["num_computed"].tolist() == reference[0].tolist()
        assert state["token_ids"].tolist() == reference[1].tolist()
    live = len(step.rows) - 2
    assert ring[1, :live, 0].tolist() == step.drawn[:live].tolist()
    assert ring[1, :live, 1].tolist() == expected[:live].tolist()
    assert not ring[0].any()


def test_penalties_count_drafts_and_then_what_is_kept(step: Step, device: torch.device) -> None:
    count = len(step.rows) - 2
    generator = torch.Generator(device=device).manual_seed(1)
    floats = torch.rand(6, generator=generator, device=device) + 0.5
    counts = torch.randint(0, 3, (6, VOCAB), generator=generator, device=device).short()
    penalized = torch.tensor([1, 1, 0, 1, 1, 1], device=device)
    scores = torch.randn(count, VOCAB, generator=generator, device=device)
    arguments = {
        "idx_mapping": step.rows[:count], "is_penalized": penalized, "repetition": floats,
        "frequency": floats, "presence": floats, "output_counts": counts,
        "prompt_bits": pack_token_bits(torch.tensor([2]), VOCAB).expand(6, -1).contiguous().to(device),
        "drafts": penalties.DraftsBefore(step.offsets[:count], step.positions[:count], step.history),
    }  # fmt: skip
    expected, actual = scores.clone(), scores.clone()
    penalties.apply_penalties_reference(expected, **arguments)
    penalties.apply_penalties(actual, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    kept, after, reference = step.kept(), counts.clone(), counts.clone()
    common = {"idx_mapping": step.rows, "token_ids": step.drawn, "num_kept": kept, "is_penalized": penalized}
    penalties.count_kept_tokens(after, **common, max_offset=MOST)
    penalties.count_kept_tokens_reference(reference, **common)
    assert after.tolist() == reference.tolist()


def test_a_fallback_of_each_entry(device: torch.device) -> None:
    logits = torch.zeros(3, VOCAB, device=device)
    logits[::2] = -torch.inf
    arguments = {
        "idx_mapping": torch.tensor([1, 1, 1], dtype=torch.int32, device=device),
        "positions": torch.tensor([4, 5, 6], dtype=torch.int32, device=device),
        "seeds": torch.tensor([3, 4], device=device), "inverse_temperatures": torch.zeros(2, device=device),
        "fallback": torch.tensor([0, 1], device=device),
        "entry_fallback": torch.tensor([5, 6, 4], device=device),
    }  # fmt: skip
    found = gumbel.gumbel_sample(logits, **arguments)
    assert found.tolist() == gumbel.gumbel_sample_reference(logits, **arguments).tolist() == [5, 0, 4]
