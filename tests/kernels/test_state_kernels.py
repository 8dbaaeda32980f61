"""Staged writes, input preparation and the state update against loops in Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.kernels.state.host_copies import copy_to_host
from dodona.kernels.state.staged_writes import CHUNK, pack_writes, scatter_ragged, scatter_ragged_reference
from dodona.kernels.state.step_state import (
    prepare_inputs,
    prepare_inputs_reference,
    update_state,
    update_state_reference,
)

INTS = {"dtype": torch.int32}


@given(gaps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=8))
@settings(max_examples=15, deadline=None)
def test_scatter_ragged_puts_every_write_in_place(gaps):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    destinations, lengths, position = [], [], 0
    for gap, length in gaps:
        destinations.append(position + gap)
        lengths.append(length)
        position += gap + length
    values = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    packed, writes = pack_writes(np.array(destinations, np.int32), np.array(lengths, np.int32), values)
    expected = np.zeros(position + 3, np.int32)
    taken = 0
    for destination, length in zip(destinations, lengths, strict=True):
        expected[destination : destination + length] = values[taken : taken + length]
        taken += length
    target = torch.zeros(position + 3, **INTS, device=device)
    packed_tensor = torch.from_numpy(packed).to(device)
    assert scatter_ragged_reference(target, packed_tensor, writes).tolist() == expected.tolist()
    scatter_ragged(target=target, packed=packed_tensor, num_writes=writes)
    assert target.tolist() == expected.tolist()


def test_long_writes_are_cut():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = np.array([2 * CHUNK + 7, 3, CHUNK], np.int32)
    values = np.arange(lengths.sum(), dtype=np.int32) + 1
    destinations = np.array([5, 0, 4000], np.int32)
    packed, writes = pack_writes(destinations, lengths, values)
    assert writes == 5
    target = torch.zeros(6000, **INTS, device=device)
    scatter_ragged(target=target, packed=torch.from_numpy(packed).to(device), num_writes=writes)
    assert target[5 : 5 + 2 * CHUNK + 7].tolist() == values[: 2 * CHUNK + 7].tolist()
    assert target[:3].tolist() == values[2 * CHUNK + 7 : 2 * CHUNK + 10].tolist()
    assert target[4000 : 4000 + CHUNK].tolist() == values[-CHUNK:].tolist()
    assert int(target.count_nonzero()) == len(values)


@pytest.mark.parametrize("padding", [0, 3, 1100])
@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [3, 1500, 1, 20]])
def test_prepare_inputs_agrees_with_loops(lengths, padding, device, generator):
    block_size, max_len = 16, 1600
    token_ids = torch.randint(0, 1000, (6, max_len), **INTS, generator=generator, device=device)
    table = torch.randint(0, 400, (6, max_len // block_size), **INTS, generator=generator, device=device)
    computed = torch.tensor([5, 0, 16, 31, 90, max_len - 1], **INTS, device=device)
    # A padded entry, and one that runs past the end of its row.
    rows = torch.tensor([3, 4, -1, 5], **INTS, device=device)
    query_start = torch.tensor([0, *np.cumsum(lengths)], **INTS, device=device)
    num_tokens = sum(lengths) + padding
    outputs = [torch.full((num_tokens,), -7, **INTS, device=device) for _ in range(3)]
    seq_lens = torch.full((4,), -7, **INTS, device=device)
    prepare_inputs(
        rows=rows, query_start=query_start, num_computed=computed, token_ids=token_ids, block_table=table,
        block_size=block_size, input_ids=outputs[0], positions=outputs[1], slots=outputs[2],
        seq_lens=seq_lens,
    )  # fmt: skip
    cpu = [t.cpu() for t in (rows, query_start, computed, token_ids, table)]
    for actual, expected in zip(
        [*outputs, seq_lens], prepare_inputs_reference(*cpu, block_size, num_tokens), strict=True
    ):
        assert actual.tolist() == expected.tolist()
    end = sum(lengths)
    assert [output[end:].tolist() for output in outputs] == [[0] * padding, [0] * padding, [-1] * padding]


@pytest.mark.parametrize("entries", [1, 3])
def test_prepare_inputs_moves_the_turn_on_once(entries, device):
    turn = torch.tensor([1], **INTS, device=device)
    turns = []
    for _ in range(5):
        outputs = [torch.zeros(entries, **INTS, device=device) for _ in range(4)]
        prepare_inputs(
            rows=torch.arange(entries, **INTS, device=device),
            query_start=torch.arange(entries + 1, **INTS, device=device),
            num_computed=torch.zeros(3, **INTS, device=device),
            token_ids=torch.zeros(3, 16, **INTS, device=device),
            block_table=torch.zeros(3, 1, **INTS, device=device), block_size=16, input_ids=outputs[0],
            positions=outputs[1], slots=outputs[2], seq_lens=outputs[3], turn=turn, num_turns=3,
        )  # fmt: skip
        turns.append(int(turn))
    assert turns == [2, 0, 1, 2, 0]


def test_prepare_inputs_gathers_embeddings(device, generator):
    token_ids = torch.randint(0, 30, (3, 40), **INTS, generator=generator, device=device)
    embedding = torch.randn(30, 24, generator=generator, device=device)
    outputs = [torch.zeros(4, **INTS, device=device) for _ in range(4)]
    hidden = torch.full((4, 24), float("nan"), device=device)
    # A padded entry, and one that is past the end of its row: both get token 0.
    rows = torch.tensor([2, -1, 0, 1], **INTS, device=device)
    prepare_inputs(
        rows=rows, query_start=torch.arange(5, **INTS, device=device),
        num_computed=torch.tensor([7, 40, 39], **INTS, device=device), token_ids=token_ids,
        block_table=torch.zeros(3, 3, **INTS, device=device), block_size=16, input_ids=outputs[0],
        positions=outputs[1], slots=outputs[2], seq_lens=outputs[3], embedding=embedding, hidden=hidden,
    )  # fmt: skip
    assert outputs[0].tolist() == [int(token_ids[2, 39]), 0, int(token_ids[0, 7]), 0]
    assert torch.equal(hidden, embedding[outputs[0].long()])


@pytest.mark.parametrize("with_index", [False, True])
@pytest.mark.parametrize("sampled_dtype", [torch.int32, torch.int64])
def test_update_state_agrees_with_loops(with_index, sampled_dtype, device):
    computed = torch.arange(6, **INTS, device=device)
    token_ids = torch.arange(6 * 8, **INTS, device=device).view(6, 8)
    rows = torch.tensor([4, -1, 0, 5], **INTS, device=device)
    seq_lens = torch.tensor([5, 0, 3, 8], **INTS, device=device)
    index = torch.tensor([1, -1, -1, 0], **INTS, device=device) if with_index else None
    sampled = torch.tensor([101, 102, 103, 104], dtype=sampled_dtype, device=device)
    expected = update_state_reference(rows, seq_lens, index, sampled, computed, token_ids)
    update_state(
        rows=rows, seq_lens=seq_lens, sample_index=index, sampled=sampled, num_computed=computed,
        token_ids=token_ids,
    )  # fmt: skip
    assert computed.tolist() == expected[0].tolist()
    assert token_ids.tolist() == expected[1].tolist()
    assert computed.tolist() == [3, 1, 2, 3, 5, 8]


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(3, dtype=torch.int32),
        torch.arange(2500, dtype=torch.int64).view(50, 50)[:, 7:30],
        torch.randn(5, 33).to(torch.bfloat16)[1:],
        torch.tensor([True, False, True]),
        torch.zeros(0, 4),
        torch.tensor(2.5),
    ],
)
def test_copies_to_the_host_are_equal(x):
    cuda = torch.cuda.is_available()
    out = torch.empty(x.shape, dtype=x.dtype, pin_memory=cuda)
    copied = copy_to_host(x=x.cuda() if cuda else x, out=out)
    if cuda:
        torch.cuda.synchronize()
    assert copied is out
    assert torch.equal(out, x)


@pytest.mark.parametrize(
    "out", [torch.empty(4), torch.empty(2, 2, dtype=torch.int32), torch.empty(2, 4)[:, :2]]
)
def test_copies_to_another_form_are_refused(out):
    with pytest.raises(ValueError, match="expected a contiguous tensor"):
        copy_to_host(x=torch.zeros(2, 2), out=out)
