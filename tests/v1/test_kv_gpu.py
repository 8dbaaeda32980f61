"""Copies of KV blocks on a GPU: exact, in order, and equal tokens by both connectors."""

from __future__ import annotations

import random

import pytest
import torch

from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
from dodona.runners.kv_transfer.cache_copies import CacheCopies
from dodona.runners.kv_transfer.offloading import host_memory
from dodona.runners.kv_transfer.offloading.host_memory import PinnedHostMemory
from dodona.runners.llm import LLM
from tests.v1.test_kv_shared_storage import GREEDY, prompts, storage

pytestmark = pytest.mark.gpu


def layers(num_blocks: int) -> list[LayerKV]:
    caches = [torch.randn(num_blocks, 2, 3, 16, 8, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    return [LayerKV(cache[:, 0].transpose(1, 2), cache[:, 1].transpose(1, 2)) for cache in caches]


def packed(kv: list[LayerKV]) -> torch.Tensor:
    layout = BlockLayout(kv)
    out = layout.empty(len(kv[0].keys))
    layout.pack(torch.arange(len(out), device="cuda"), out)
    return out.cpu()


@pytest.mark.parametrize("staging", [1, 20_000, 1 << 27])
def test_blocks_come_back_as_they_were_whatever_overwrites_them(monkeypatch, staging):
    monkeypatch.setattr(host_memory, "STAGING_BYTES", staging)
    rng = random.Random(0)
    cache = layers(40)
    before = packed(cache)
    memory = PinnedHostMemory(BlockLayout(cache), 64)
    blocks, slots = rng.sample(range(40), 25), rng.sample(range(64), 25)
    for _ in range(20):
        copy = memory.store(blocks, slots)
        memory.order_before_steps([copy])
        for layer in cache:  # what a step would write after a preemption
            layer.keys.zero_()
            layer.values.zero_()
        done = memory.load(blocks, slots)
        memory.order_before_steps([done])
        after = packed(cache)
        assert torch.equal(after[blocks], before[blocks])
        assert not after[[b for b in range(40) if b not in blocks]].any()
    assert copy.query()
    memory.close()
    memory.close()


def test_threads_copy_what_was_written_before(tmp_path):
    cache = layers(12)
    copies = CacheCopies(BlockLayout(cache))
    expected = packed(cache)
    host = copies.to_host([7, 2], copies.mark())
    assert torch.equal(host, expected[[7, 2]])
    copies.to_cache([1, 3], list(host), copies.mark())
    assert torch.equal(packed(cache)[[1, 3]], expected[[7, 2]])


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("kind", ["offloading", "storage"])
def test_equal_tokens(tiny_models, tmp_path, monkeypatch, runner, kind):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", {"v1": "0", "v2": "1"}[runner])
    flat = {"kv_offloading_size": 0.01} if kind == "offloading" else storage(tmp_path)
    path = tiny_models.path("llama", head_dim=16)
    sizes = {
        "skip_tokenizer_init": True, "block_size": 16, "max_num_seqs": 4, "max_model_len": 64,
        "max_num_batched_tokens": 24, "dtype": "float32",
    }  # fmt: skip
    todo = [{"prompt_token_ids": p} for p in prompts()]
    with LLM(path, **sizes, enable_prefix_caching=False) as llm:
        plain = [list(o.outputs[0].token_ids) for o in llm.generate(todo, GREEDY, use_tqdm=False)]
    with LLM(path, **sizes, **flat, num_gpu_blocks_override=5) as llm:
        for turn in range(3):
            outputs = llm.generate(todo, GREEDY, use_tqdm=False)
            assert [list(o.outputs[0].token_ids) for o in outputs] == plain
            if turn and kind == "offloading":  # a file may still be on its way
                cached = [16 * ((len(p) - 1) // 16) for p in prompts()]
                assert [o.num_cached_tokens for o in outputs] == cached
