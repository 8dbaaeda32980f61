"""One thread at a time makes models: transformers changes what holds for the whole process meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dodona.runners.v1.loading import load_model


def test_threads_that_load_at_once_make_one_model_at_a_time(tiny_models, monkeypatch):
    path = tiny_models.path("gemma2")  # its embeddings are tied
    tie_weights, from_pretrained = PreTrainedModel.tie_weights, AutoModelForCausalLM.from_pretrained
    inside, together = [], threading.Event()

    def slow(*args, **kwargs):
        inside.append(None)
        if len(inside) > 1:
            together.set()
        together.wait(0.1)
        try:
            return from_pretrained(*args, **kwargs)
        finally:
            inside.pop()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slow)
    with ThreadPoolExecutor(3) as threads:
        calls = [
            threads.submit(
                load_model, path, weights=path, dtype=torch.float32, device=torch.device("cpu"), seed=0,
                trust_remote_code=False,
            )
            for _ in range(3)
        ]  # fmt: skip
        models = [call.result() for call in calls]
    assert not together.is_set()
    assert PreTrainedModel.tie_weights is tie_weights
    for model in models:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
