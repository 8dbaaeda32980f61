"""Convolutions and scans of packed sequences, beside loops in torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.state_space.causal_conv import causal_conv, causal_conv_reference
from dodona.kernels.state_space.gated_delta import gated_delta, gated_delta_reference
from dodona.kernels.state_space.selective_scan import selective_scan, selective_scan_reference
from dodona.kernels.state_space.sequences import SlotSequences


def make_sequences(counts, slots, begins, device):
    starts = torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32)
    return SlotSequences(
        starts, torch.tensor(slots, device=device), torch.tensor(begins, device=device), max(counts)
    )


SEQUENCES = {
    "decodes": ([1, 1, 1], [2, 0, 3], [False, False, True]),
    "mixed": ([1, 1, 19, 2, 34], [4, 1, 0, 2, 3], [False, True, False, False, True]),
}


@pytest.mark.parametrize(("channels", "width", "kept", "silu"), [(40, 4, 4, True), (200, 3, 2, False)])
@pytest.mark.parametrize("name", SEQUENCES)
def test_causal_conv(device, dtype, tolerance, generator, name, channels, width, kept, silu):
    def randn(*shape):
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    sequences = make_sequences(*SEQUENCES[name], device)
    tokens = int(sequences.query_start[-1])
    x = randn(tokens, channels * 2)[:, :channels] if silu else randn(channels, tokens).T
    weight, bias, state = randn(channels, width), randn(channels) if silu else None, randn(5, channels, kept)
    expected, new_state = causal_conv_reference(x, weight, bias, state, sequences, silu)
    found = causal_conv(x=x, weight=weight, bias=bias, state=state, sequences=sequences, silu=silu)
    torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(state, new_state)


@pytest.mark.parametrize(
    ("heads", "groups", "head_size", "state_size", "plain"),
    [(4, 2, 8, 16, False), (3, 1, 5, 12, True), (1, 1, 16, 256, False)],
    ids=["groups", "without bias and skip", "large"],
)
@pytest.mark.parametrize("name", SEQUENCES)
def test_selective_scan(device, dtype, generator, name, heads, groups, head_size, state_size, plain):
    def randn(*shape):
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    sequences = make_sequences(*SEQUENCES[name], device)
    tokens = int(sequences.query_start[-1])
    inputs = {
        "x": randn(tokens, heads * head_size + 3)[:, 3:].unflatten(1, (heads, head_size)),
        "dt": randn(tokens, heads + 2)[:, :heads],
        "a": -torch.rand(heads, generator=generator, device=device) - 0.1,
        "b": randn(tokens, groups, state_size),
        "c": randn(tokens, groups, state_size) / state_size**0.5,
        "d": None if plain else randn(heads),
        "dt_bias": None if plain else randn(heads) * 9,
        "softplus": not plain,
        "sequences": sequences,
    }
    if plain:
        inputs["dt"] = inputs["dt"].abs()
    state = randn(5, heads, head_size, state_size).float()
    expected, new_state = selective_scan_reference(**inputs, state=state)
    found = selective_scan(**inputs, state=state)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, new_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "key_heads", "key_size", "value_size", "unit_length"),
    [(4, 2, 16, 8, True), (1, 1, 12, 20, False), (2, 1, 128, 32, True)],
    ids=["groups", "odd", "large"],
)
@pytest.mark.parametrize("name", SEQUENCES)
def test_gated_delta(
    device, dtype, tolerance, generator, name, heads, key_heads, key_size, value_size, unit_length
):
    def randn(*shape):
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    sequences = make_sequences(*SEQUENCES[name], device)
    tokens = int(sequences.query_start[-1])
    inputs = {
        "q": randn(tokens, key_heads * key_size + 3)[:, 3:].unflatten(1, (key_heads, key_size)),
        "k": randn(tokens, key_heads, key_size) / key_size**0.5,
        "v": randn(tokens, heads, value_size),
        "g": -randn(tokens, heads).abs(),
        "beta": randn(tokens, heads).sigmoid(),
        "unit_length": unit_length,
        "eps": 1e-6,
        "sequences": sequences,
    }
    state = randn(5, heads, key_size, value_size).float()
    expected, new_state = gated_delta_reference(**inputs, state=state)
    found = gated_delta(**inputs, state=state)
    torch.testing.assert_close(found.float(), expected, **tolerance)
    torch.testing.assert_close(state, new_state, rtol=1e-4, atol=1e-4)
