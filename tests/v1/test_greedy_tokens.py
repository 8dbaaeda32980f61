"""V1's greedy tokens are those of transformers' own `generate`."""

from __future__ import annotations

import pytest
import torch

from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import FAMILIES, SLIDING_WINDOW, VOCAB_SIZE
from tests.v1.driver import Driver, make_runner

LENGTHS = (1, 2, 5, 17, SLIDING_WINDOW, 40, 3)
NEW_TOKENS = (16, 9, 16, 5, 16, 12, 16)


def mixed_prompts(seed: int = 0) -> list[list[int]]:
    """Random prompts of `LENGTHS`; two begin alike."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]
    prompts[5][:17] = prompts[3]
    return prompts


def _compare(tiny_models, reference, family, runner_settings=None, max_ties=2, **driver_settings):
    path = tiny_models.path(family)
    runner = make_runner(path, num_blocks=160, **(runner_settings or {}))
    plain = reference(path)
    prompts = mixed_prompts()
    driver = Driver(runner, num_blocks=160, **driver_settings)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1], max_ties=max_ties)
    # Where prefixes are kept, the second round finds those of the first.
    for _ in range(2 if driver.prefix_caching else 1):
        for job in driver.generate(prompts, NEW_TOKENS):
            equal.compare(job.prompt, plain.generate(job.prompt, job.max_tokens), job.output)
    equal.check()
    runner.shutdown()
    return driver


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_lengths_in_one_batch(tiny_models, reference, family):
    _compare(tiny_models, reference, family)


@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "prefix-caching"])
@pytest.mark.parametrize("preempt_every", [0, 5], ids=["", "preemption"])
@pytest.mark.parametrize("budget", [64, 7], ids=["", "chunked"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-oss", "llama4", "deepseek-v3"])
def test_chunks_preemption_and_prefix_caching(
    tiny_models, reference, family, budget, preempt_every, prefix_caching
):
    driver = _compare(
        tiny_models,
        reference,
        family,
        budget=budget,
        preempt_every=preempt_every,
        prefix_caching=prefix_caching,
    )
    assert (driver.preemptions > 0) == bool(preempt_every)
    assert (driver.prefix_hits > 0) == prefix_caching


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_any_block_size(tiny_models, reference, block_size):
    _compare(tiny_models, reference, "mistral", {"block_size": block_size}, budget=11)
