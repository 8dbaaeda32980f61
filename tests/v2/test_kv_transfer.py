"""V2 with KV connectors, in Triton's interpreter where there is no GPU: equal tokens, and blocks of the same
content as V1's."""

from __future__ import annotations

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.kv_transfer.block_layout import BlockLayout, LayerKV
from dodona.runners.kv_transfer.connector import KVConnectorWorker
from dodona.runners.kv_transfer.factory import plan_kv_transfer
from dodona.runners.limits import resolve_limits
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1 import device_serving
from dodona.runners.v1.runner import V1Runner
from tests.distributed.thread_workers import use_threads
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_kv_shared_storage import run, storage
from tests.v2.drive import DEVICE, generate, make_runner
from tests.v2.test_greedy_tokens import prompts_of

BLOCK_SIZE, NUM_BLOCKS = 16, 4


class Recorder(KVConnectorWorker):
    """Keeps the views of the cache that a runner registers."""

    def __init__(self) -> None:
        self.layers: list[LayerKV] = []

    def register_kv_caches(self, kv_caches, part):
        self.layers = list(kv_caches)


@pytest.fixture(scope="module")
def path(tiny_models):
    return tiny_models.path("qwen3", head_dim=16)


def scheduler_of(runner, connector=None):
    config = runner.config.scheduler_config
    return Scheduler(
        num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens, kv_connector=connector,
    )  # fmt: skip


def stored_blocks(runner, prompt):
    """The prompt's full blocks in the canonical layout, after the runner computed them."""
    recorder = Recorder()
    runner._kv_connector = recorder
    runner.initialize_kv_cache(NUM_BLOCKS)
    scheduler = scheduler_of(runner)
    (request,) = generate(runner, [prompt], max_tokens=1, in_flight=1, scheduler=scheduler).requests
    layout = BlockLayout(recorder.layers)
    assert layout.bytes_per_block == runner.get_kv_cache_spec().bytes_per_block
    block_ids = scheduler.blocks.find(request.block_hashes)
    packed = layout.empty(len(block_ids))
    layout.pack(torch.tensor(block_ids, device=packed.device), packed)
    return packed.cpu()


@pytest.mark.parametrize("on_device", [False, True], ids=["v1-on-host", "v1-on-device"])
def test_both_runners_write_the_same_blocks(path, monkeypatch, on_device):
    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: on_device)
    monkeypatch.setattr(device_serving, "check_device_steps", lambda *args, **kwargs: 0.0)
    (prompt,) = prompts_of(35)
    flat = {"block_size": BLOCK_SIZE, "dtype": "float32", "max_num_seqs": 2, "max_num_batched_tokens": 64}
    device = DEVICE if on_device else "cpu"
    config, model = EngineConfig.from_flat(str(path), device=device, **flat), ModelInfo.load(path)
    v1 = V1Runner(config, model, resolve_limits(config, model))
    v1.load_model()
    assert (v1.max_steps_in_flight == 2) == on_device
    ours = stored_blocks(v1, prompt)
    theirs = stored_blocks(make_runner(path, num_blocks=1, **flat), prompt)
    assert ours.shape == theirs.shape == (2, ours.shape[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_blocks_come_back_from_the_host(path):
    flat = {"block_size": BLOCK_SIZE, "dtype": "float32", "max_num_seqs": 2, "max_num_batched_tokens": 64}
    runner = make_runner(path, num_blocks=NUM_BLOCKS, **flat, kv_offloading_size=0.001)
    plan = plan_kv_transfer(runner.config, runner.name)
    scheduler = scheduler_of(runner, plan.scheduler_connector(runner))
    prompt, other = prompts_of(35, 60)
    first = generate(runner, [prompt], max_tokens=2, scheduler=scheduler)
    generate(runner, [other], max_tokens=1, scheduler=scheduler)  # takes all blocks
    again = generate(runner, [prompt], max_tokens=2, scheduler=scheduler)
    assert [request.num_cached_tokens for request in again.requests] == [32]
    assert again.outputs == first.outputs


def test_v2_and_ranks_of_v1_read_each_others_files(path, tmp_path, monkeypatch):
    """V1 on two ranks that share the heads, V2 on one."""
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    use_threads(monkeypatch)
    todo = prompts_of(35, 53)
    flat = {
        "block_size": BLOCK_SIZE, "dtype": "float32", "max_num_seqs": 2, "max_num_batched_tokens": 64,
        "max_model_len": 64, "num_gpu_blocks_override": 12, "skip_tokenizer_init": True, **storage(tmp_path),
    }  # fmt: skip

    def on_v1(prompt):
        with LLM(str(path), device="cpu", tensor_parallel_size=2, **flat) as llm:
            params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
            (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
            return output.num_cached_tokens, list(output.outputs[0].token_ids)

    def on_v2(prompt):
        runner = make_runner(path, num_blocks=NUM_BLOCKS, **flat)
        connector = plan_kv_transfer(runner.config, runner.name).scheduler_connector(runner)
        found = generate(runner, [prompt], max_tokens=2, scheduler=scheduler_of(runner, connector))
        runner.shutdown()
        return found.requests[0].num_cached_tokens, list(found.outputs[0])

    computed, tokens = on_v1(todo[0])
    assert (computed, on_v2(todo[0])) == (0, (32, tokens))
    computed, tokens = on_v2(todo[1])
    assert (computed, on_v1(todo[1])) == (0, (48, tokens))
    assert len(list(tmp_path.rglob("*.parts/*.safetensors"))) == 4


def test_v2_and_ranks_of_v1_share_memory(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    use_threads(monkeypatch)
    todo = prompts_of(35, 53)
    flat = {
        "block_size": BLOCK_SIZE, "dtype": "float32", "max_num_seqs": 2, "max_num_batched_tokens": 64,
        "max_model_len": 64, "num_gpu_blocks_override": 12, "skip_tokenizer_init": True,
        **memory(tmp_path / "kv", "kv_both"),
    }  # fmt: skip
    runner = make_runner(path, num_blocks=NUM_BLOCKS, **flat)
    connector = plan_kv_transfer(runner.config, runner.name).scheduler_connector(runner)
    scheduler = scheduler_of(runner, connector)

    def on_v2(prompt):
        found = generate(runner, [prompt], max_tokens=2, scheduler=scheduler)
        return list(found.outputs[0]), found.requests[0].num_cached_tokens

    with LLM(str(path), device="cpu", tensor_parallel_size=2, **flat) as llm:
        greedy = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
        tokens, cached = on_v2(todo[0])
        assert run(llm, todo[:1], greedy) == ([tokens], [32])
        tokens, _ = run(llm, todo[1:], greedy)
        assert on_v2(todo[1]) == (tokens[0], 48)
        assert cached == 0
    runner.shutdown()
    connector.shutdown()
