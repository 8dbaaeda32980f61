"""Adapters together with KV connectors: each adapter finds its own blocks, in other engines too."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from dodona import LLM, LoRARequest, SamplingParams
from tests.distributed.thread_workers import use_threads
from tests.lora.test_v1 import generated, make_llm, plain
from tests.support.adapters import linear_layers, merge, scale_of, write_adapter
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_kv_shared_storage import storage

PROMPT = [5, 9, 17, 3, 8, 1, 2, 30, 31, 32, 33, 60, 2, 7]
"""Three full blocks."""
PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(autouse=True)
def _v1(monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")


@pytest.fixture(scope="module")
def kinds(tiny_models, tmp_path_factory):
    """The model, three adapters and none, and the tokens of each."""
    path, folder = tiny_models.path("qwen3"), tmp_path_factory.mktemp("adapters")
    targets = linear_layers(plain(path), ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"))
    adapters: list[Any] = [None]
    expected = [generated(plain(path), PROMPT)[0]]
    for number in (1, 2, 3):
        written = write_adapter(folder / str(number), targets, r=4, seed=number, lora_alpha=6)
        adapters.append(LoRARequest(str(number), number, str(written)))
        expected.append(generated(merge(plain(path), written, scale_of(6, 4)), PROMPT)[0])
    assert len({tuple(tokens) for tokens in expected}) == 4
    return path, adapters, expected


def run(llm: LLM, adapters: list[Any]) -> tuple[list[list[int]], list[int]]:
    outputs = llm.generate(
        [{"prompt_token_ids": PROMPT}] * len(adapters), PARAMS, lora_request=adapters, use_tqdm=False
    )
    return [list(o.outputs[0].token_ids) for o in outputs], [o.num_cached_tokens for o in outputs]


@pytest.mark.parametrize("sizes", [{}, {"tensor_parallel_size": 2}], ids=str)
def test_offloaded_blocks_belong_to_their_adapter(kinds, monkeypatch, sizes):
    """More adapters than may be in use at a time, and requests of all of them wait for their KV."""
    use_threads(monkeypatch)
    path, adapters, expected = kinds
    flat = {"kv_offloading_size": 0.01, "enable_prefix_caching": False, "max_loras": 1}
    with make_llm(path, **flat, **sizes) as llm:
        assert run(llm, adapters) == (expected, [0] * 4)
        for _ in range(2):
            assert run(llm, adapters * 3) == (expected * 3, [12] * 12)
        held = llm._client.call(lambda _, scheduler: scheduler.transfers.under_way, drain=True)
        assert not held


def test_preempted_requests_with_adapters(kinds):
    path, adapters, expected = kinds
    flat = {"kv_offloading_size": 0.01, "max_loras": 3, "num_gpu_blocks_override": 14, "max_model_len": 32}
    with make_llm(path, **flat) as llm:
        for _ in range(2):
            assert run(llm, adapters * 3)[0] == expected * 3
        assert llm._client.call(lambda _, scheduler: scheduler.num_preemptions)


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_another_engine_knows_an_adapter_by_its_content(kinds, tmp_path, kind):
    path, adapters, expected = kinds
    shutil.copytree(adapters[1].lora_path, tmp_path / "copy")
    renamed = [LoRARequest("same", 7, str(tmp_path / "copy")), LoRARequest("other", 1, adapters[2].lora_path)]
    folder = tmp_path / "kv"
    ours, theirs = (
        storage(folder, role) if kind == "files" else memory(folder, role)
        for role in ("kv_producer", "kv_consumer")
    )
    producer = make_llm(path, **ours)
    assert run(producer, adapters[:2])[0] == expected[:2]
    if kind == "files":
        producer.shutdown()
    with make_llm(path, **theirs) as consumer:
        assert run(consumer, renamed) == (expected[1:3], [12, 0])
        assert run(consumer, [None]) == (expected[:1], [12])
    producer.shutdown()
