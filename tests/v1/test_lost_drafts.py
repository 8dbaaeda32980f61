"""Logits that are not numbers, with drafts: the model's, in the middle of drafts that are accepted, and those
of what drafts. Each request yields what it yields without drafts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.step_layout import StepLayout

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
QWEN3 = CHECKPOINTS / "qwen3"
SPOILT, GOOD = 7, 10
"""A token whose embedding is not a number, and another."""
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1),
    # `GOOD`, until its penalty leaves `SPOILT`, after which nothing is a number
    SamplingParams(
        temperature=0.0, max_tokens=12, ignore_eos=True, logit_bias={GOOD: 9.0}, frequency_penalty=2.0,
        allowed_token_ids=[GOOD, SPOILT], logprobs=1,
    ),
    SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True),
    SamplingParams(temperature=0.7, seed=4, max_tokens=9, ignore_eos=True),
]  # fmt: skip
PROMPTS = [[25, 30, 28, 70] * 3, [GOOD] * 6, [12, SPOILT, 20], [25, 30, 28, 70] * 2]


def spoil(source: Path, path: Path, *, whole: bool = False) -> Path:
    """A copy of a model, of which one token's embedding, or everything, is not a number."""
    shutil.copytree(source, path)
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if whole and tensor.is_floating_point():
            tensor.fill_(math.nan)
        elif name == "model.embed_tokens.weight":
            tensor[SPOILT] = math.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def outputs(model: Path, drafts: dict[str, Any] | None) -> tuple[list[Any], int]:
    """What becomes of the requests, twice, and how many drafts were accepted."""
    settings = {"skip_tokenizer_init": True, "max_model_len": 64, "num_gpu_blocks_override": 40}
    if drafts is not None:
        drafts = {**drafts, "num_speculative_tokens": 3}
    with LLM(model, device="cpu", max_num_seqs=4, speculative_config=drafts, **settings) as llm:
        found = [
            (list(one.token_ids), one.finish_reason, output.error, one.logprobs and len(one.logprobs))
            for _ in range(2)  # rows and blocks of lost requests serve others
            for output in llm.generate(PROMPTS, PARAMS)
            for one in output.outputs
        ]
        return found, llm.draft_stats().num_accepted_tokens


def test_a_model_that_is_lost_among_accepted_drafts(tiny_models, tmp_path: Path) -> None:
    good = tiny_models.path("qwen3", num_hidden_layers=1)
    model = spoil(good, tmp_path / "model")
    plain, _ = outputs(model, None)
    tokens, reason, error, num_logprobs = plain[1]
    assert (reason, tokens[-1], num_logprobs) == ("error", SPOILT, len(tokens))
    assert len(tokens) > 2
    assert f"after {6 + len(tokens)} tokens are NaN" in (error or "")
    assert [reason for _, reason, *_ in plain] == ["length", "error", "error", "length"] * 2
    for drafter in (good, model):  # the first goes on after the token, the second is lost too
        found, num_accepted = outputs(model, {"method": "draft_model", "model": str(drafter)})
        assert found == plain
        assert num_accepted > 10
    assert outputs(model, {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1})[0] == plain


@pytest.mark.parametrize("head", ["qwen3-eagle3", "qwen3-peagle"])
def test_a_head_that_is_lost_drafts_nothing(head: str, tmp_path: Path) -> None:
    drafts = {"method": "eagle3", "parallel_drafting": head == "qwen3-peagle"}
    lost = spoil(CHECKPOINTS / head, tmp_path / "head", whole=True)
    assert outputs(QWEN3, {**drafts, "model": str(lost)}) == outputs(QWEN3, None)
    # A request whose target is lost: the head computes nothing of it.
    found, _ = outputs(spoil(QWEN3, tmp_path / "model"), {**drafts, "model": str(CHECKPOINTS / head)})
    assert [reason for _, reason, *_ in found] == ["length", "length", "error", "length"] * 2


@pytest.mark.parametrize(
    ("counts", "computed", "prompts", "may"),
    [
        ([3, 1], [0, 9], [8, 9], False),
        ([3, 1], [4, 9], [8, 9], False),  # a prompt's next chunk; a token without drafts
        ([1, 3], [0, 9], [1, 9], True),
        ([3], [4], None, True),
        ([3, 1], [0, 4], None, False),
    ],
)
def test_the_host_waits_for_steps_alone_that_may_have_drafts(counts, computed, prompts, may) -> None:
    tables = np.zeros((len(counts), 2), dtype=np.int64)
    layout = StepLayout(counts, computed, tables, 16, torch.device("cpu"), prompt_lengths=prompts)
    assert layout.may_verify is may
