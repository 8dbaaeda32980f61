"""The state on the device against a plain copy on the host, over random steps."""

from __future__ import annotations

import random

import pytest
import torch

from dodona.kernels.state.staged_writes import CHUNK
from dodona.runners.device import state as state_module
from dodona.runners.device.state import RequestState
from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.interface import NewRequest
from dodona.runners.sampling.params import SamplingParams
from tests.v2.drive import DEVICE


def request(row, token_ids, block_ids, computed=0):
    return NewRequest("r", row, token_ids, len(token_ids), computed, block_ids, SamplingParams(), 0)


@pytest.fixture
def state():
    return RequestState(max_num_seqs=5, max_model_len=3000, block_size=16, device=torch.device(DEVICE))


def test_random_steps_match_a_copy_on_the_host(state):
    chance = random.Random(5)
    tokens, blocks = {}, {}
    for _ in range(12):
        new = chance.sample(range(5), chance.randint(0, 2))
        for row in new:
            length = chance.choice([1, 7, 40, CHUNK + 5])
            tokens[row] = [chance.randrange(1000) for _ in range(length)]
            blocks[row] = [chance.randrange(99) for _ in range(-(-length // 16))]
            state.add_request(request(row, tokens[row], blocks[row]))
        for row in blocks:
            if row not in new and chance.random() < 0.5:
                more = [chance.randrange(99) for _ in range(chance.randint(1, 3))]
                state.append_blocks(row, more)
                blocks[row] += more
        if blocks:
            rows = chance.sample(sorted(blocks), chance.randint(1, len(blocks)))
            computed = [chance.randrange(50) for _ in rows]
            lengths = [chance.randint(1, 5) for _ in rows]
            samples = [chance.random() < 0.5 for _ in rows]
            count = state.set_mixed_batch(rows, computed, lengths, samples)
            state.flush()
            ends = [sum(lengths[: i + 1]) for i in range(len(rows))]
            chosen = [i for i in range(len(rows)) if samples[i]]
            assert count == len(chosen)
            assert state.rows[: len(rows)].tolist() == rows
            assert state.query_start[: len(rows) + 1].tolist() == [0, *ends]
            assert state.num_computed[rows].tolist() == computed
            assert state.sample_rows[:count].tolist() == [rows[i] for i in chosen]
            assert state.sample_tokens[:count].tolist() == [ends[i] - 1 for i in chosen]
            assert state.sample_positions[:count].tolist() == [computed[i] + lengths[i] for i in chosen]
            places = [chosen.index(i) if i in chosen else -1 for i in range(len(rows))]
            assert state.sample_index[: len(rows)].tolist() == places
        for row in tokens:
            assert state.token_ids[row, : len(tokens[row])].tolist() == tokens[row]
            assert state.block_table[row, : len(blocks[row])].tolist() == blocks[row]


def test_a_steady_decode_batch_sends_nothing(state, monkeypatch):
    sent = []
    real = state_module.scatter_ragged
    monkeypatch.setattr(
        state_module, "scatter_ragged", lambda **kw: (sent.append(kw["num_writes"]), real(**kw))
    )
    for row in (3, 1):
        state.add_request(request(row, [1, 2, 3], [row]))
    state.set_mixed_batch([3, 1], [0, 0], [3, 3], [True, True])
    state.flush()
    state.num_computed[[3, 1]] += 3  # what the state update does on the device
    state.set_decode_batch([3, 1], [3, 3], 4)
    state.flush()
    assert state.rows[:4].tolist() == [3, 1, -1, -1]
    first = list(sent)
    for step in range(1, 5):
        state.set_decode_batch([3, 1], [3 + step, 3 + step], 4)
        state.flush()
    assert sent == first
    state.append_blocks(1, [7])
    state.set_decode_batch([3, 1], [8, 8], 4)
    state.flush()
    assert sent == [*first, 1]
    assert state.block_table[1, :2].tolist() == [1, 7]


def test_a_steady_batch_of_drafts_on_the_device_sends_nothing(state, monkeypatch):
    sent = []
    real = state_module.scatter_ragged
    monkeypatch.setattr(
        state_module, "scatter_ragged", lambda **kw: (sent.append(kw["num_writes"]), real(**kw))
    )
    state = RequestState(
        max_num_seqs=5, max_model_len=300, block_size=16, device=torch.device(DEVICE), max_num_entries=15
    )
    for row in (3, 1):
        state.add_request(request(row, [1, 2, 3], [row]))
    state.set_mixed_batch([3, 1], [0, 0], [3, 3], [True, True])
    state.flush()
    state.num_computed[[3, 1]] += 3  # what the state update does on the device

    def verify(computed, drafts, lengths=(3, 3), **padding):
        state.set_draft_batch([3, 1], computed, lengths, [True, True], drafts=drafts, num_single=2, **padding)
        before = len(sent)
        state.flush()
        return len(sent) > before

    on_device = dict.fromkeys((3, 1), DeviceDrafts(2))
    padding = {"padded_length": 9, "padded_rows": 3}
    assert verify([3, 3], on_device, **padding)
    assert state.rows[:9].tolist() == [3, 3, 3, 1, 1, 1, -1, -1, -1]
    assert state.offsets[:9].tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 0]
    assert state.first_samples[:3].tolist() == [0, 3, -1]
    assert state.sample_entries[:6].tolist() == [0, 1, 2, 3, 4, 5]
    state.num_computed[[3, 1]] += torch.tensor([1, 2], device=DEVICE, dtype=torch.int32)
    for most in (6, 9, 7):  # whatever the host takes for the most
        assert not verify([most, most], on_device, **padding)
    assert state.num_computed[[3, 1]].tolist() == [4, 5]
    # Another shape of the same batch, and drafts from the host, whose places it must know.
    assert verify([8, 8], on_device)
    assert verify([4, 5], {3: [8, 9], 1: DeviceDrafts(2)})
    assert state.num_computed[[3, 1]].tolist() == [4, 5]
    assert state.token_ids[3, 5:7].tolist() == [8, 9]
    # A row that decodes next has the host's count again.
    state.set_decode_batch([1, 3], [8, 6], 4)
    state.flush()
    assert state.num_computed[[3, 1]].tolist() == [6, 8]
    assert verify([6, 8], on_device, **padding)


def test_too_much_state_is_refused():
    with pytest.raises(ValueError, match="max_model_len"):
        RequestState(max_num_seqs=4096, max_model_len=1 << 20, block_size=16, device=torch.device("meta"))
