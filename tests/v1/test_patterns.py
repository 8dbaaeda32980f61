"""Attention patterns against masks written out position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import masking_utils as hf

from dodona.runners.v1.patterns import CAUSAL, AttentionPattern, recognise

sizes = st.integers(1, 5000)
positions = st.integers(0, 20000)


def _sees(pattern: AttentionPattern, query: int, key: int) -> bool:
    if key > query:
        return False
    if pattern.kind == "sliding":
        return query - key < pattern.size
    if pattern.kind == "chunked":
        return query // pattern.size == key // pattern.size
    return True


@given(st.sampled_from(["causal", "sliding", "chunked"]), sizes, positions, positions)
def test_first_visible_and_mask_agree_with_the_definition(kind, size, query, key):
    pattern = AttentionPattern(kind, 0 if kind == "causal" else size)
    assert bool(pattern.visible(torch.tensor(query), torch.tensor(key))) == _sees(pattern, query, key)
    first = pattern.first_visible(query)
    assert _sees(pattern, query, first)
    assert first == 0 or not _sees(pattern, query, first - 1)
    assert pattern.first_visible(np.array([query]))[0] == first


@given(sizes)
def test_masks_of_transformers_are_recognised(size):
    zero = torch.zeros(1, dtype=torch.int64)
    assert recognise(hf.causal_mask_function, None) == CAUSAL
    sliding = recognise(hf.sliding_window_causal_mask_function(size), size)
    chunked = recognise(hf.chunked_causal_mask_function(size, zero), size)
    assert sliding == AttentionPattern("sliding", size)
    # One position alone is the same either way.
    assert chunked == AttentionPattern("sliding" if size == 1 else "chunked", size)


@given(sizes.filter(lambda n: n > 1), st.sampled_from([-1, 1]))
def test_a_window_of_another_size_is_not_recognised(size, off):
    assert recognise(hf.sliding_window_causal_mask_function(size + off), size) is None


@pytest.mark.parametrize(
    "mask",
    [
        hf.bidirectional_mask_function,
        hf.or_masks(hf.causal_mask_function, lambda b, h, q, k: k < 3),
        hf.and_masks(hf.causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0),
        hf.sliding_window_causal_mask_function(8),
        lambda b, h, q, k: torch.zeros(2, 2)[q, k] > 0,
    ],
    ids=["bidirectional", "prefix", "strided", "undeclared window", "indexes a tensor"],
)
def test_other_masks_are_not_recognised(mask):
    assert recognise(mask, None) is None


def test_a_window_of_no_size_is_not_recognised():
    assert recognise(hf.sliding_window_causal_mask_function(0), 0) is None


@pytest.mark.parametrize(("kind", "size"), [("causal", 3), ("sliding", 0), ("chunked", -1)])
def test_sizes_that_mean_nothing_are_refused(kind, size):
    with pytest.raises(ValueError, match="size"):
        AttentionPattern(kind, size)
