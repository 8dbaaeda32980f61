"""Calls of an LLM with arguments of any kind: answered or a named error, and nobody else notices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dodona.oracle.errors import DodonaError
from dodona.runners.llm import LLM
from dodona.runners.lora.request import LoRARequest
from dodona.runners.pooling.params import PoolingParams
from dodona.runners.sampling.params import SamplingParams

QWEN3 = Path(__file__).resolve().parents[2] / "checkpoints/qwen3"
PARAMS = SamplingParams(temperature=0.0, max_tokens=2)
DOWN = "model.layers.0.mlp.down_proj.weight"
INDICES, NUMBERS = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
VALUES: tuple[Any, ...] = (
    None, 0, -1, 10**30, 1.5, float("nan"), True, "x", "", b"x", b"12345678", [], {}, [1, "x"], [[]],
    "\ud800", "a\0b", object(), NUMBERS, "/dev/zero", "/",
)  # fmt: skip

CALLS: dict[str, Callable[[LLM, Any], object]] = {
    "generate": lambda llm, v: llm.generate(v, PARAMS),
    "generate in a list": lambda llm, v: llm.generate([v], PARAMS),
    "sampling_params": lambda llm, v: llm.generate("x", PARAMS if v is None else v),
    "lora_request": lambda llm, v: llm.generate("x", PARAMS, lora_request=v),
    "stream": lambda llm, v: list(llm.stream(v, PARAMS)),
    "request_id": lambda llm, v: list(llm.stream("x", PARAMS, request_id=v)),
    "chat": lambda llm, v: llm.chat(v, PARAMS),
    "chat of a content": lambda llm, v: llm.chat([{"role": "user", "content": v}], PARAMS),
    "chat of a role": lambda llm, v: llm.chat([{"role": v, "content": "x"}], PARAMS),
    "abort": lambda llm, v: llm.abort(v),
    "embed": lambda llm, v: llm.embed(v),
    "add_lora": lambda llm, v: llm.add_lora(v),
    "add_lora of a path": lambda llm, v: llm.add_lora(LoRARequest("a", 1, v)),
    "remove_lora": lambda llm, v: llm.remove_lora(v),
    "load_weights": lambda llm, v: llm.load_weights(v),
    "load_weights of a name": lambda llm, v: llm.load_weights([(v, NUMBERS)]),
    "load_weights of a tensor": lambda llm, v: llm.load_weights([(DOWN, v)]),
    "reload_weights": lambda llm, v: llm.reload_weights(v),
    "patches": lambda llm, v: llm.apply_sparse_weight_patches(v),
    "patch of a name": lambda llm, v: llm.apply_sparse_weight_patches({DOWN: v}),
    "indices of a patch": lambda llm, v: llm.apply_sparse_weight_patches({DOWN: (v, NUMBERS)}),
    "values of a patch": lambda llm, v: llm.apply_sparse_weight_patches({DOWN: (INDICES, v)}),
    "update_config": lambda llm, v: llm.update_config(v),
    "update_config of a section": lambda llm, v: llm.update_config({"load_config": v}),
    "update_config of a field": lambda llm, v: llm.update_config({"load_config": {"load_format": v}}),
    "sleep": lambda llm, v: (llm.sleep(v), llm.wake_up()),
    "wake_up": lambda llm, v: llm.wake_up(v),
    "wake_up of a tag": lambda llm, v: llm.wake_up([v]),
    "collective_rpc": lambda llm, v: llm.collective_rpc(v),
    "args": lambda llm, v: (llm.collective_rpc("sleep", v), llm.wake_up()),
    "kwargs": lambda llm, v: (llm.collective_rpc("sleep", kwargs=v), llm.wake_up()),
}

POOLING_CALLS: dict[str, Callable[[LLM, Any], object]] = {
    "embed": lambda llm, v: llm.embed(v),
    "embed in a list": lambda llm, v: llm.embed([v]),
    "pooling_params": lambda llm, v: llm.embed("x", pooling_params=v),
    "dimensions": lambda llm, v: llm.embed("x", pooling_params=PoolingParams(dimensions=v)),
    "truncation": lambda llm, v: llm.embed("x", pooling_params=PoolingParams(truncate_prompt_tokens=v)),
    "score": lambda llm, v: llm.score(v, "x"),
    "score of documents": lambda llm, v: llm.score("x", v),
    "score in a list": lambda llm, v: llm.score("x", [v]),
    "classify": lambda llm, v: llm.classify(v),
    "encode": lambda llm, v: llm.encode(v),
    "pooling_task": lambda llm, v: llm.encode("x", pooling_task=v),
    "generate": lambda llm, v: llm.generate(v),
}


@pytest.fixture(scope="module")
def generating() -> Iterator[LLM]:
    sizes = {"max_model_len": 64, "num_gpu_blocks_override": 32, "max_num_seqs": 4}
    with LLM(QWEN3, device="cpu", enable_lora=True, **sizes) as llm:
        yield llm


@pytest.fixture(scope="module")
def pooling() -> Iterator[LLM]:
    with LLM(QWEN3, device="cpu", runner="pooling", max_model_len=64) as llm:
        yield llm


def _try(call: Callable[[LLM, Any], object], llm: LLM) -> None:
    for value in VALUES:
        with contextlib.suppress(DodonaError):
            call(llm, value)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_answered_or_a_named_error(name: str, generating: LLM) -> None:
    (before,) = generating.generate("What is 1 + 1?", PARAMS)
    _try(CALLS[name], generating)
    (after,) = generating.generate("What is 1 + 1?", PARAMS)
    assert after.error is None
    assert after.outputs[0].token_ids == before.outputs[0].token_ids


@pytest.mark.parametrize("name", POOLING_CALLS)
def test_a_call_of_a_pooling_model_is_answered_or_a_named_error(name: str, pooling: LLM) -> None:
    (before,) = pooling.embed("What is 1 + 1?")
    _try(POOLING_CALLS[name], pooling)
    (after,) = pooling.embed("What is 1 + 1?")
    assert after.outputs.embedding == before.outputs.embedding
