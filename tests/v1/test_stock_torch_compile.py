"""`STOCK_TORCH_COMPILE` compiles the model for real and gives the same tokens."""

from __future__ import annotations

from collections import Counter

import pytest
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

from tests.support.equal_tokens import EqualTokens
from tests.v1.driver import Driver, make_runner

PROMPTS = [[5, 6, 7], [9] * 20, [3, 4], [60]]


@pytest.mark.slow
def test_tokens_of_a_compiled_model(tiny_models, reference):
    path = tiny_models.path("llama", num_hidden_layers=10)
    counters.clear()
    clear_compilation_metrics()
    runner = make_runner(path, compilation_config={"mode": "STOCK_TORCH_COMPILE"})
    # Layers share their code: were each compiled anew, torch would give up after a few of them.
    assert counters["frames"]["ok"] > 0
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for settings in ({}, {"budget": 7, "preempt_every": 4}):
        for job in Driver(runner, **settings).generate(PROMPTS, 10):
            equal.compare(job.prompt, plain.generate(job.prompt, 10), job.output)
    equal.check()
    assert not any("limit" in reason for reason in counters["unimplemented"])
    # get_compilation_metrics keeps 64.
    assert counters["frames"]["ok"] < 60
    compiled = Counter((m.co_filename, m.co_firstlineno, m.co_name) for m in get_compilation_metrics())
    assert sum(compiled.values()) >= counters["frames"]["ok"]
    assert sum(compiled.values()) - len(compiled) <= 8, compiled
