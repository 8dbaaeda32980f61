"""Log-probabilities of V1 are transformers' to 1e-3, and sampling depends on nothing but the request."""

from __future__ import annotations

import pytest
import torch

from dodona.runners.sampling.params import SamplingParams
from tests.v1.driver import Driver, make_runner


def _check_entry(entry, logprobs: torch.Tensor, token: int, top_n: int) -> None:
    """`logprobs` [vocab] by transformers."""
    assert entry.token_ids[0] == token
    assert len(entry.token_ids) == len(entry.logprobs) == 1 + top_n
    found = torch.tensor(entry.logprobs)
    torch.testing.assert_close(found, logprobs[list(entry.token_ids)], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1:], logprobs.topk(top_n).values, atol=1e-3, rtol=0)
    own = logprobs[token]
    # Neighbours within rounding may stand on either side of the token.
    low, high = int((logprobs > own + 1e-4).sum()), int((logprobs > own - 1e-4).sum())
    assert low + 1 <= entry.rank <= max(high, low + 1)


@pytest.mark.parametrize("budget", [64, 5], ids=["", "chunked"])
@pytest.mark.parametrize("preempt_every", [0, 4], ids=["", "preemption"])
def test_logprobs_of_prompt_and_output(tiny_models, reference, budget, preempt_every):
    path = tiny_models.path("qwen3")
    plain = reference(path)
    runner = make_runner(path)
    driver = Driver(runner, budget=budget, preempt_every=preempt_every)
    prompts = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [100], [20, 21, 22]]
    params = [
        SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=2, ignore_eos=True),
        SamplingParams(temperature=1.3, logprobs=0, prompt_logprobs=0, ignore_eos=True),
        SamplingParams(temperature=0.8, top_k=7, ignore_eos=True),
    ]
    jobs = driver.generate(prompts, 8, params)
    for job in jobs[:2]:
        expected = plain.logits(job.tokens).log_softmax(-1)
        begin = len(job.prompt)
        assert len(job.logprobs) == 8
        for i, entry in enumerate(job.logprobs):
            _check_entry(entry, expected[begin - 1 + i], job.output[i], job.params.logprobs)
        # A preempted prompt is computed again, and tells again; the engine keeps the first telling.
        told = job.prompt_logprobs[: begin - 1]
        assert len(told) == begin - 1
        for i, entry in enumerate(told):
            _check_entry(entry, expected[i], job.prompt[i + 1], job.params.prompt_logprobs)
    assert not jobs[2].logprobs
    assert not jobs[2].prompt_logprobs


def test_samples_depend_on_the_request_alone(tiny_models):
    runner = make_runner(tiny_models.path("llama"))
    params = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.2, ignore_eos=True)
    prompts = [[5, 6, 7], [8] * 11, [9, 10], [11] * 30]
    together = Driver(runner, budget=9, preempt_every=3).generate(
        prompts, 10, params, seeds=[1, 2, 3, 1 << 62]
    )
    for job in together:
        (alone,) = Driver(runner).generate([job.prompt], 10, params, seeds=[job.seed])
        assert alone.output == job.output
    (other,) = Driver(runner).generate([prompts[0]], 10, params, seeds=[12])
    assert other.output != together[0].output
