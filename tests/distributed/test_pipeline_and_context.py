"""V1's tokens are transformers' own where layers, prompts or experts are spread over ranks."""

from __future__ import annotations

import pytest

from tests.distributed.test_tensor_parallel import NEW_TOKENS, compare, prompts
from tests.distributed.thread_runners import generate_on_ranks
from tests.support.tiny_models import FAMILIES

PP, PCP, TP = "pipeline_parallel_size", "prefill_context_parallel_size", "tensor_parallel_size"
HARD = {"budget": 13, "preempt_every": 5, "prefix_caching": True}
"""Chunks, preemption and cached prefixes."""


def check(tiny_models, reference, family, *, driver=None, rounds=1, **sizes):
    path = tiny_models.path(family)
    found, drivers = generate_on_ranks(
        path, prompts(), NEW_TOKENS, driver=driver or {"budget": 16}, rounds=rounds, **sizes
    )
    compare(path, reference, found, prompts(), NEW_TOKENS)
    return drivers


@pytest.mark.parametrize("family", FAMILIES)
def test_pp(tiny_models, reference, family):
    check(tiny_models, reference, family, **{PP: 2})


@pytest.mark.parametrize("family", FAMILIES)
def test_pcp(tiny_models, reference, family):
    check(tiny_models, reference, family, **{PCP: 2})


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v3", "llama4"])
def test_ep(tiny_models, reference, family):
    check(tiny_models, reference, family, **{TP: 2, "enable_expert_parallel": True})
