"""Sampling through V2: equal to V1's by the same seeds, whatever shares the batch; log-probabilities like
transformers'."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona.runners.sampling.params import SamplingParams
from tests.v1.driver import make_runner as make_v1_runner
from tests.v2.drive import DEVICE, generate, make_runner
from tests.v2.test_greedy_tokens import prompts_of

MIXED = [
    SamplingParams(temperature=0.8, seed=11, ignore_eos=True),
    SamplingParams(temperature=0.0, ignore_eos=True),
    SamplingParams(temperature=1.2, top_k=5, top_p=0.9, seed=12, ignore_eos=True),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.4, seed=13, ignore_eos=True),
    SamplingParams(temperature=0.7, min_p=0.05, logit_bias={7: 3.0}, seed=14, ignore_eos=True),
    SamplingParams(temperature=0.9, allowed_token_ids=[3, 30, 60, 90], seed=15, ignore_eos=True),
]


class OneStepAtATime:
    """V1 under the driver that V2's tests use."""

    def __init__(self, path):
        self.runner = make_v1_runner(path, num_blocks=40, block_size=16, max_num_seqs=4, max_model_len=256)


def test_mixed_parameters_give_v1s_tokens(tiny_models):
    path = tiny_models.path("qwen3", head_dim=16)
    prompts = prompts_of(4, 20, 9, 13, 1, 30)
    expected = generate(OneStepAtATime(path).runner, prompts, max_tokens=8, params=MIXED, in_flight=1).outputs
    assert generate(make_runner(path), prompts, max_tokens=8, params=MIXED).outputs == expected


def test_tokens_do_not_depend_on_the_batch(tiny_models):
    path = tiny_models.path("llama", head_dim=16)
    prompts = prompts_of(4, 20, 9)
    runner = make_runner(path)
    together = generate(runner, prompts, max_tokens=6, params=MIXED[:3]).outputs
    alone = [
        generate(runner, [prompt], max_tokens=6, params=params).outputs[0]
        for prompt, params in zip(prompts, MIXED, strict=False)
    ]
    assert alone == together


@pytest.mark.parametrize("budget", [64, 10])
def test_logprobs_agree_with_transformers(tiny_models, budget):
    path = tiny_models.path("llama", head_dim=16)
    prompts = prompts_of(25, 6, 14)
    params = [
        SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=2, ignore_eos=True),
        SamplingParams(temperature=0.0, ignore_eos=True),
        SamplingParams(temperature=0.0, logprobs=0, prompt_logprobs=4, ignore_eos=True),
    ]
    runner = make_runner(path, max_num_batched_tokens=budget)
    run = generate(runner, prompts, max_tokens=4, params=params)
    reference = AutoModelForCausalLM.from_pretrained(path).to(DEVICE).eval()
    for request, prompt, asked in zip(run.requests, prompts, params, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([request.token_ids], device=DEVICE)).logits[0].float().cpu()
        expected = logits.log_softmax(-1)
        assert len(request.logprobs) == (4 if asked.logprobs is not None else 0)
        for i, entry in enumerate(request.logprobs):
            check(entry, expected[len(prompt) - 1 + i], request.token_ids[len(prompt) + i], asked.logprobs)
        assert len(request.prompt_logprobs) == (len(prompt) - 1 if asked.prompt_logprobs is not None else 0)
        for i, entry in enumerate(request.prompt_logprobs):
            check(entry, expected[i], prompt[i + 1], asked.prompt_logprobs)


def check(entry, logprobs, token_id, top_n):
    assert entry.token_ids[0] == token_id
    assert len(entry.token_ids) == len(entry.logprobs) == 1 + top_n
    torch.testing.assert_close(
        torch.tensor(entry.logprobs), logprobs[list(entry.token_ids)], rtol=0, atol=1e-3
    )
    assert entry.token_ids[1:] == tuple(logprobs.topk(top_n).indices.tolist())
    assert entry.rank == 1 + int((logprobs > logprobs[token_id]).sum())
