"""`STOCK_TORCH_COMPILE` compiles the model for real and gives the same tokens."""

from __future__ import annotations

import pytest
from torch._dynamo.utils import counters

from tests.support.equal_tokens import EqualTokens
from tests.v1.driver import Driver, make_runner

PROMPTS = [[5, 6, 7], [9] * 20, [3, 4], [60]]


@pytest.mark.slow
def test_tokens_of_a_compiled_model(tiny_models, reference):
    path = tiny_models.path("llama", num_hidden_layers=10)
    counters.clear()
    runner = make_runner(path, compilation_config={"mode": "STOCK_TORCH_COMPILE"})
    # Layers share their code: were each compiled anew, torch would give up after a few of them.
    assert counters["frames"]["ok"] > 0
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    # Steps of one token are compiled beside those of several; both are, before an engine serves.
    Driver(runner).generate([[60]], 2)
    warm = counters["frames"]["total"]
    for settings in ({}, {"budget": 7, "preempt_every": 4}):
        for job in Driver(runner, **settings).generate(PROMPTS, 10):
            equal.compare(job.prompt, plain.generate(job.prompt, 10), job.output)
    equal.check()
    assert not any("limit" in reason for reason in counters["unimplemented"])
    assert counters["frames"]["ok"] < 60
    assert counters["frames"]["total"] <= warm + 8  # recompilations while it serves
