"""V1's steps from state on the device, here by Triton's interpreter."""

from __future__ import annotations

import pytest

from dodona.runners.v1 import device_serving
from tests.support.equal_tokens import EqualTokens
from tests.v1.driver import Driver, make_runner

FAMILIES = ("qwen3", "gemma2", "gpt-oss", "deepseek-v3", "llama4")
"""Norms on heads; windows, soft caps, 1 + weight; sinks; differing head sizes; chunks, other rotations."""

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [2, 7, 1], [6, 28, 31, 85]]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run from state on the device on a CPU, too."""
    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: True)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(tiny_models, reference, family):
    path = tiny_models.path(family)
    plain = reference(path)
    runner = make_runner(path, num_blocks=40)
    assert runner.max_steps_in_flight == 2
    driver = Driver(runner, num_blocks=40, budget=9, preempt_every=4)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for job in driver.generate(PROMPTS, 5):
        equal.compare(job.prompt, plain.generate(job.prompt, job.max_tokens), job.output)
    equal.check()
