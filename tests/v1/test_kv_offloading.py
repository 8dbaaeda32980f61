"""V1 with OffloadingConnector: greedy tokens are transformers', and blocks come back from the host."""

from __future__ import annotations

import pytest
import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.errors import EngineSetupError
from dodona.runners.interface import KVConnectorOutput, KVPart
from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
from dodona.runners.kv_transfer.block_transfers import BlockMetadata, BlockTransferScheduler, Transfer
from dodona.runners.kv_transfer.offloading import worker as offloading_worker
from dodona.runners.kv_transfer.offloading.slots import HostSlots
from dodona.runners.kv_transfer.offloading.worker import OffloadingWorker
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import VOCAB_SIZE

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
SIZES = {
    "device": "cpu", "skip_tokenizer_init": True, "block_size": 4, "max_num_seqs": 5, "max_model_len": 64,
    "num_gpu_blocks_override": 16, "kv_offloading_size": 0.001,
}  # fmt: skip


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (3, 33, 17, 40, 20)]
    prompts[4] = prompts[1][:24] + prompts[4][:4]
    return prompts


def run(llm, prompts, params=GREEDY):
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [(list(o.outputs[0].token_ids), o.num_cached_tokens) for o in outputs]


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek-v3"])
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "prefix-caching"])
@pytest.mark.parametrize("chunk", [256, 8], ids=["", "chunked"])
def test_greedy_tokens(tiny_models, reference, monkeypatch, family, prefix_caching, chunk):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = tiny_models.path(family)
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    prompts = _prompts()
    flat = {"enable_prefix_caching": prefix_caching, "max_num_batched_tokens": chunk}
    with LLM(path, **SIZES, **flat) as llm:
        for turn in range(3):
            for prompt, (tokens, cached) in zip(prompts, run(llm, prompts), strict=True):
                equal.compare(prompt, plain.generate(prompt, 8), tokens)
                if turn and len(prompt) > 4:
                    assert cached >= 4 * ((len(prompt) - 1) // 4)
        scheduler = llm._client.call(lambda _, scheduler: scheduler)
        assert scheduler.num_preemptions
        stream = llm.stream({"prompt_token_ids": prompts[3]}, GREEDY)
        stream.close()
        assert run(llm, prompts[3:4])[0][0] == plain.generate(prompts[3], 8)
    equal.check()


def test_new_weights_do_not_find_old_blocks(tiny_models):
    with LLM(tiny_models.path("llama"), **SIZES) as llm:
        prompts = _prompts()[1:2]
        tokens = run(llm, prompts)[0][0]
        llm.reload_weights()
        assert run(llm, prompts) == [(tokens, 0)]


@pytest.mark.parametrize(
    ("flat", "error"),
    [
        ({"kv_offloading_size": 1e-9}, "is 1 bytes of the host's memory .* a KV block takes"),
        ({"kv_offloading_size": 4e6}, "kv_offloading_size takes 4e\\+06 GiB of the host's memory"),
        (
            {"num_gpu_blocks_override": 10**14},
            "a KV cache of 100000000000000 blocks of .* can't be allocated",
        ),
        ({"num_gpu_blocks_override": 10**30}, "num_gpu_blocks_override|can't be allocated"),
        (
            {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_producer"}},
            "kv_role",
        ),
        (
            {
                "kv_offloading_size": None,
                "kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"},
            },
            "needs one size",
        ),
        (
            {
                "kv_transfer_config": {
                    "kv_connector": "OffloadingConnector",
                    "kv_role": "kv_both",
                    "kv_connector_extra_config": {"block_size": 8},
                }
            },
            "doesn't know 'block_size'",
        ),
        (
            {
                "kv_transfer_config": {
                    "kv_connector": "OffloadingConnector",
                    "kv_role": "kv_both",
                    "kv_port": 80,
                }
            },
            "kv_port has no effect",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_models, flat, error):
    with pytest.raises((EngineSetupError, UnsupportedConfiguration), match=error):
        LLM(tiny_models.path("llama"), **{**SIZES, **flat})


@pytest.mark.parametrize(
    ("flat", "rule"),
    [
        ({"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}}, "kv-connector"),
        ({"kv_offloading_backend": "lmcache"}, "kv-connector"),
        (
            {
                "kv_transfer_config": {
                    "kv_connector": "OffloadingConnector",
                    "kv_role": "kv_both",
                    "kv_connector_module_path": "m",
                }
            },
            "kv-connector",
        ),
    ],
)
def test_connectors_that_are_not_served_are_refused_by_name(tiny_models, flat, rule):
    with pytest.raises(UnsupportedConfiguration) as caught:
        LLM(tiny_models.path("llama"), **{**SIZES, **flat})
    assert rule in {reason.rule for reason in caught.value.verdict.refusals}


def test_the_canonical_layout():
    generator = torch.Generator().manual_seed(0)
    slots, layers = 6 * 4, []
    for heads, size_k, size_v in ((2, 8, 8), (1, 6, 4)):
        keys = torch.randn(slots, heads, size_k, generator=generator)
        values = torch.randn(slots, heads, size_v, generator=generator)
        layers.append(LayerKV(keys.view(6, 4, heads, size_k), values.view(6, 4, heads, size_v)))
    layout = BlockLayout(layers)
    packed = layout.empty(2)
    layout.pack(torch.tensor([4, 1]), packed)
    for row, block in enumerate((4, 1)):
        parts = [t[block].flatten() for layer in layers for t in (layer.keys, layer.values)]
        assert torch.equal(packed[row], torch.cat(parts))
    others = [LayerKV(torch.zeros_like(x.keys), torch.zeros_like(x.values)) for x in layers]
    BlockLayout(others).unpack(torch.tensor([0, 5]), packed)
    for layer, other in zip(layers, others, strict=True):
        assert torch.equal(other.keys[[0, 5]], layer.keys[[4, 1]])
        assert torch.equal(other.values[[0, 5]], layer.values[[4, 1]])
        assert not other.keys[1:5].any()


class _Memory:
    """Copies that end when a test says so."""

    def __init__(self):
        self.ended, self.before_steps = set(), []

    def load(self, block_ids, slots):
        memory, name = self, tuple(slots)

        class Load:
            def query(self):
                return name in memory.ended

        return Load()

    def order_before_steps(self, copies):
        self.before_steps += copies


def test_loads_of_an_idle_engine_are_reported_at_once_and_the_next_step_comes_after_them(monkeypatch):
    memory, worker = _Memory(), OffloadingWorker(cpu_bytes=1 << 10)
    monkeypatch.setattr(offloading_worker, "allocate_host_memory", lambda layout, num_slots: memory)
    worker.register_kv_caches([LayerKV(*torch.zeros(2, 4, 4, 1, 2))], KVPart.whole(()))

    def step(*loads, is_idle):
        metadata = BlockMetadata(is_idle=is_idle, loads=[Transfer(name, [0], [name]) for name in loads])
        worker.handle_preemptions(metadata)
        before = len(memory.before_steps)
        worker.start_load_kv(metadata)
        return before, worker.get_finished(())[1]

    assert step(1, is_idle=False) == (0, set())
    assert step(is_idle=False) == (0, set())
    assert step(2, is_idle=True) == (0, {1, 2})  # what this step has launched does not come after them
    assert step(3, is_idle=False) == (2, set())
    memory.ended.add((3,))
    assert step(is_idle=True) == (2, {3})


def test_there_is_a_step_for_the_order_after_loads():
    scheduler = BlockTransferScheduler(HostSlots(4), block_size=4)
    scheduler._loading["a"] = []
    assert scheduler.build_connector_meta((), ()) is not None
    scheduler.update_connector_output(KVConnectorOutput(frozenset(), frozenset({"a"}), frozenset()))
    assert scheduler.build_connector_meta((), ()) == BlockMetadata(loads=[], stores=[])
    assert scheduler.build_connector_meta((), ()) is None
