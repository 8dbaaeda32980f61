"""The trained Qwen3, quantized in each scheme that is served, still answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from checkpoints.evaluate import generate_answers, held_out_prompts
from checkpoints.quantize import quantize_checkpoint
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.v1.loading import load_model

SOURCE = Path(__file__).parents[2] / "checkpoints" / "qwen3"
SERVED = ("w8a16", "w4a16", "w4a16-act-order", "w8a8-int8", "w8a8-fp8", "w8a8-fp8-static", "fp8", "awq")
COUNT = 50
"""Prompts of each of three forms."""


@pytest.fixture(scope="module")
def questions():
    """(tokenizer, prompts, share of right answers of the unquantized model)."""
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    found = held_out_prompts(tokenizer, count=COUNT, recall=True, seed=3)
    prompts = [prompt for form in found.values() for prompt in form]
    return tokenizer, prompts, right_answers(SOURCE, tokenizer, prompts)


def right_answers(path, tokenizer, prompts):
    model = load_model(
        path, weights=path, dtype=torch.float32, device=torch.device("cpu"), seed=0, trust_remote_code=False,
        quantization=ModelInfo.load(path).quantization,
    )  # fmt: skip
    answers = generate_answers(model, tokenizer, prompts)
    return sum(a == p.answer for a, p in zip(answers, prompts, strict=True)) / len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_accuracy_is_within_two_points(name, questions, tmp_path):
    tokenizer, prompts, unquantized = questions
    calibration = held_out_prompts(tokenizer, count=16, recall=True, seed=2)
    ids = [list(prompt.token_ids) for form in calibration.values() for prompt in form]
    quantize_checkpoint(SOURCE, tmp_path / name, name, prompts=ids)
    assert right_answers(tmp_path / name, tokenizer, prompts) > unquantized - 0.02
