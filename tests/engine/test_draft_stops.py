"""Stop strings and streams where a step yields several accepted drafts: as without drafts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams

QWEN3 = Path(__file__).resolve().parents[2] / "checkpoints/qwen3"
SIZES: dict[str, Any] = {
    "device": "cpu",
    "max_model_len": 96,
    "num_gpu_blocks_override": 32,
    "max_num_seqs": 4,
}
DRAFTS: list[dict[str, Any]] = [
    {"method": "draft_model", "model": str(QWEN3), "num_speculative_tokens": 5},  # it is always right
    {
        "method": "suffix",
        "num_speculative_tokens": 8,
        "suffix_decoding_max_cached_requests": 0,
        "suffix_decoding_max_spec_factor": 4.0,
        "suffix_decoding_min_token_prob": 0.0,
    },
]
PROMPTS = ("1 + 1 = 2, 1 + 1 = 2, 1 + 1 = 2, 1 + 1 =", "a b c a b c a b c", "naïve 🙂 naïve 🙂 naïve 🙂")


@pytest.fixture(scope="module")
def plain() -> Iterator[LLM]:
    with LLM(QWEN3, **SIZES) as llm:
        yield llm


def params(**more: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, **more)


@pytest.mark.parametrize("settings", DRAFTS, ids=lambda settings: settings["method"])
def test_stop_strings_within_accepted_drafts(plain: LLM, settings: dict[str, Any]) -> None:
    rng = random.Random(3)
    asked, prompts = [], []
    for prompt, output in zip(PROMPTS, plain.generate(list(PROMPTS), params()), strict=True):
        text = output.outputs[0].text
        for keep in (False, True):
            for _ in range(2):
                at = rng.randrange(max(1, len(text) - 6))
                stop = [text[at : at + rng.randint(1, 6)] or "zzz", "zzz"]
                asked.append(params(stop=stop, include_stop_str_in_output=keep))
                prompts.append(prompt)
        asked.append(params(stop=["zzz"]))
        prompts.append(prompt)
    expected = plain.generate(prompts, asked, use_tqdm=False)
    with LLM(QWEN3, **SIZES, speculative_config=settings) as llm:
        found = llm.generate(prompts, asked, use_tqdm=False)
        streams = [list(llm.stream(prompt, one)) for prompt, one in zip(prompts, asked, strict=True)]
        accepted = llm.draft_stats().mean_acceptance_length
        assert accepted is not None
        assert accepted > (4 if settings["method"] == "draft_model" else 1)
    undrafted = [replace(one.outputs[0], num_draft_tokens=0, num_accepted_tokens=0) for one in found]
    assert undrafted == [output.outputs[0] for output in expected]
    for output, items in zip(expected, streams, strict=True):
        (sequence,) = output.outputs
        deltas = [delta.outputs[0] for delta in items]
        assert "".join(delta.text for delta in deltas) == sequence.text
        assert [token for delta in deltas for token in delta.token_ids] == list(sequence.token_ids)
        assert deltas[-1].finish_reason == sequence.finish_reason
        assert deltas[-1].stop_reason == sequence.stop_reason
    assert {output.outputs[0].finish_reason for output in expected} == {"stop", "length"}
