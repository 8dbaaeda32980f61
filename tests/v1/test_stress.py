"""V1 under load: random requests with random aborts and few KV blocks, each against its solo run."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dodona.runners.llm import LLM
from tests.support.stress import Sizes, check_stress
from tests.support.tiny_models import make_model

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.slow
def test_random_requests_equal_their_solo_runs(reference, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = CHECKPOINTS / "mistral"  # its sliding window is shorter than the longest prompts
    plain = reference(path)
    check_stress(
        lambda **flat: LLM(path, device="cpu", **flat),
        lambda ids: plain.logits(ids)[-1],
        AutoTokenizer.from_pretrained(path),
        block_size=8,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lfm2", "falcon-h1"])
def test_random_requests_of_a_hybrid_equal_their_solo_runs(reference, monkeypatch, tmp_path, family):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "qwen3")
    make_model(family, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = reference(tmp_path)
    check_stress(
        lambda **flat: LLM(tmp_path, device="cpu", **flat),
        lambda ids: plain.logits(ids)[-1],
        tokenizer,
        block_size=8,
        sizes=Sizes(count=40),
        prefix_caching=False,
    )


@pytest.mark.slow
def test_random_requests_with_drafts_equal_their_solo_runs_without(reference, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = CHECKPOINTS / "mistral"
    plain = reference(path)
    drafts = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}

    def make_llm(**flat):
        alone = flat["max_num_seqs"] == 1
        return LLM(path, device="cpu", speculative_config=None if alone else drafts, **flat)

    check_stress(
        make_llm,
        lambda ids: plain.logits(ids)[-1],
        AutoTokenizer.from_pretrained(path),
        block_size=8,
        # Short prompts and long outputs: a window gives back what a long prompt took.
        sizes=Sizes(count=60, longest_prompt=24, most_tokens=120),
    )
