"""The trained Qwen3, quantized in each scheme that is served, still answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from checkpoints.evaluate import held_out_prompts
from checkpoints.quantize import quantize_checkpoint
from checkpoints.quantized_copies import share_right

SOURCE = Path(__file__).parents[2] / "checkpoints" / "qwen3"
SERVED = ("w8a16", "w4a16", "w4a16-act-order", "w8a8-int8", "w8a8-fp8", "w8a8-fp8-static", "fp8", "awq")
COUNT = 50
"""Prompts of each of three forms."""


@pytest.fixture(scope="module")
def questions():
    """(tokenizer, prompts by form, share of right answers of the unquantized model)."""
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    prompts = held_out_prompts(tokenizer, count=COUNT, recall=True, seed=3)
    return tokenizer, prompts, share_right(SOURCE, prompts)["all"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_accuracy_is_within_two_points(name, questions, tmp_path):
    tokenizer, prompts, unquantized = questions
    calibration = held_out_prompts(tokenizer, count=16, recall=True, seed=2)
    ids = [list(prompt.token_ids) for form in calibration.values() for prompt in form]
    quantize_checkpoint(SOURCE, tmp_path / name, name, prompts=ids)
    assert share_right(tmp_path / name, prompts)["all"] > unquantized - 0.02
