"""The roofline against arithmetic by hand, and against a plain simulation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.models import SHAPES, read_config
from benchmarks.roofline import MEASURED, Rates, Shape, workload_roofline

SMALL = Shape(
    hidden_size=4,
    intermediate_size=6,
    num_layers=2,
    num_q_heads=2,
    num_kv_heads=1,
    head_size=3,
    vocab_size=10,
    sliding_window=None,
    dtype_bytes=2,
)


def test_shape_by_hand() -> None:
    # A layer: qkv 4 × (6 + 3 + 3), o 6 × 4, gate, up and down 3 × 4 × 6.
    assert SMALL.layer_weights == 2 * (48 + 24 + 72)
    assert SMALL.head_weights == 40
    assert SMALL.step_weight_bytes(7) == 2 * (288 + 40)
    assert SMALL.kv_bytes_per_token == 2 * 2 * 1 * 3 * 2
    assert SMALL.pair_flops == 2 * 2 * 2 * 2 * 3


def test_workload_by_hand() -> None:
    """One request, 3 tokens in, 3 out: one prefill step, and decode steps over contexts 4 and 5."""
    result = workload_roofline(
        SMALL, [(3, 3)], max_num_seqs=1, max_num_batched_tokens=8, rates=Rates(1.0, 1e9)
    )
    assert result.prefill_bytes == 656 + 3 * 24
    assert result.prefill_flops == 2 * 288 * 3 + 2 * 40 + 48 * 6
    assert result.decode_steps == 2
    assert result.decode_bytes == (656 + (4 + 1) * 24) + (656 + (5 + 1) * 24)
    assert result.decode_flops == 2 * 2 * (288 + 40) + 48 * (4 + 5)
    assert result.seconds == pytest.approx(result.prefill_bytes + result.decode_bytes)  # bytes bind
    slow = workload_roofline(SMALL, [(3, 3)], max_num_seqs=1, max_num_batched_tokens=8, rates=Rates(1e9, 1.0))
    assert slow.seconds == pytest.approx(slow.prefill_flops + slow.decode_flops)


def test_known_models() -> None:
    """Parameters and KV bytes as published for these models."""
    small = Shape.of(read_config("qwen3-0.6b"), 2)
    assert small.kv_bytes_per_token == 114688
    assert small.layer_weights == pytest.approx(0.44e9, rel=0.01)
    large = Shape.of(read_config("qwen3-8b"), 2)
    assert large.layer_weights + 2 * large.head_weights == pytest.approx(8.19e9, rel=0.01)
    llama = Shape.of(read_config("llama-3.1-8b"), 2)
    assert llama.layer_weights + 2 * llama.head_weights == pytest.approx(8.03e9, rel=0.01)


def test_every_shape_without_inner_states_has_a_roofline() -> None:
    for name in SHAPES:
        if "quantization_config" in read_config(name):
            with pytest.raises(ValueError, match="quantizes them"):
                Shape.of(read_config(name), 2)
            continue
        if name == "falcon-h1-1.5b":
            with pytest.raises(ValueError, match="inner state"):
                Shape.of(read_config(name), 2)
            continue
        assert Shape.of(read_config(name), 2).step_weight_bytes(1) > 0


def test_experts() -> None:
    """Parameters as published: 30.5 billion, of which a token meets 3.3, embeddings among both."""
    shape = Shape.of(read_config("qwen3-30b-a3b"), 2)
    assert shape.layer_weights + 2 * shape.head_weights == pytest.approx(3.3e9, rel=0.02)
    everything = shape.step_weight_bytes(1 << 20) / 2 + shape.head_weights
    assert everything == pytest.approx(30.5e9, rel=0.01)
    assert shape.step_weight_bytes(1) / 2 == pytest.approx(shape.layer_weights + shape.head_weights, abs=100)
    with pytest.raises(ValueError, match="shared experts"):
        Shape.of({**read_config("qwen3-30b-a3b"), "shared_expert_intermediate_size": 8}, 2)


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ValueError, match="neither a directory"):
        read_config("qwen3-0.7b")


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7),
    rows=st.integers(1, 4),
    window=st.none() | st.integers(1, 5),
)
def test_schedule_against_simulation(lengths: list[tuple[int, int]], rows: int, window: int | None) -> None:
    shape = replace(SMALL, sliding_window=window)
    waiting, running = list(lengths), []
    expected_bytes, expected_flops, steps = 0, 0, 0
    while True:
        # A request that has all its tokens after prefill takes no row's time.
        while waiting and len(running) < rows:
            prompt, output = waiting.pop(0)
            if output > 1:
                running.append([prompt + 1, output - 1])
        if not running:
            break
        steps += 1
        seen = sum(min(context, window) if window else context for context, _ in running)
        expected_bytes += (
            shape.step_weight_bytes(len(running)) + (seen + len(running)) * shape.kv_bytes_per_token
        )
        expected_flops += 2 * (288 + 40) * len(running) + shape.pair_flops * seen
        running = [[context + 1, left - 1] for context, left in running if left > 1]
    result = workload_roofline(shape, lengths, max_num_seqs=rows, max_num_batched_tokens=4)
    assert (result.decode_steps, result.decode_bytes, result.decode_flops) == (
        steps,
        expected_bytes,
        expected_flops,
    )
    pairs = sum(min(i + 1, window) if window else i + 1 for prompt, _ in lengths for i in range(prompt))
    prompt_tokens = sum(prompt for prompt, _ in lengths)
    assert result.prefill_flops == 2 * 288 * prompt_tokens + 80 * len(lengths) + shape.pair_flops * pairs


def test_rates_are_those_of_the_card_but_for_what_is_given() -> None:
    assert Rates.of("NVIDIA H100 80GB HBM3") == MEASURED["H100"]
    assert Rates.of("NVIDIA H200") == Rates.of("another card") == MEASURED["H200"]
    assert Rates.of("NVIDIA H100 80GB HBM3", flops=1.0) == Rates(MEASURED["H100"].bandwidth, 1.0)
