"""Steps beyond their tokens: graphs, memory, no hidden waits (the last on a GPU only)."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from dodona.runners.device import ready
from dodona.runners.device import steps as steps_module
from dodona.runners.device.rehearsal import PLAIN, RehearsalStep
from dodona.runners.device.sampling.prompt_logprobs import PromptLogprobRequests
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.warm_up import warm_up
from tests.v2.drive import GREEDY, EagerGraphs, generate, make_runner, set_graphs
from tests.v2.test_greedy_tokens import prompts_of
from tests.v2.test_sampled_tokens import MIXED

RANDOM = SamplingParams(temperature=0.9, seed=5, ignore_eos=True)


def test_profile_and_warm_up_leave_no_state_behind(tiny_models):
    path, prompts = tiny_models.path("llama", head_dim=16), prompts_of(11, 19)
    settings = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "max_model_len": 64}
    expected = generate(make_runner(path, **settings), prompts, max_tokens=3).outputs
    runner = make_runner(path, load=False, **settings)
    runner.load_model()
    available = runner.determine_available_memory()
    assert available == 2 * 64 // 16 * runner.get_kv_cache_spec().bytes_per_block  # all rows at full length
    runner.initialize_kv_cache(8)
    warm_up(runner)
    runner.capture_graphs()
    assert generate(runner, prompts, max_tokens=3, num_blocks=8).outputs == expected


def test_steps_before_their_time_are_refused(tiny_models):
    runner = make_runner(tiny_models.path("llama", head_dim=16), load=False)
    with pytest.raises(RuntimeError, match="load_model first"):
        runner.get_kv_cache_spec()
    runner.load_model()
    with pytest.raises(RuntimeError, match="initialize_kv_cache first"):
        runner.execute_model(None)
    with pytest.raises(RuntimeError, match="without execute_model"):
        runner.sample_tokens()


def test_state_is_allocated_for_the_length_that_the_blocks_hold(tiny_models):
    runner = make_runner(tiny_models.path("llama", head_dim=16), load=False, max_num_seqs=2)
    runner.load_model()
    runner.initialize_kv_cache(4)
    assert runner.ready.max_model_len == runner.ready.state.token_ids.shape[1] == 256
    runner.initialize_kv_cache(3, 48)
    state = runner.ready.state
    assert (state.token_ids.shape[1], state.block_table.shape[1]) == (48, 3)
    assert runner.ready.steps.kv_caches[0].shape[0] == 3
    prompts = prompts_of(20)
    expected = generate(make_runner(tiny_models.path("llama", head_dim=16)), prompts, max_tokens=2).outputs
    assert generate(runner, prompts, max_tokens=2, num_blocks=3).outputs == expected


def test_rehearsed_steps_fit_the_length_that_the_blocks_hold(tiny_models):
    """Prompts that are longer than a row would spoil its neighbours."""
    runner = make_runner(tiny_models.path("llama", head_dim=16), load=False, max_num_seqs=2)
    runner.load_model()
    runner.initialize_kv_cache(1, 16)
    runner.steps.rehearse(RehearsalStep([64], kinds=(PLAIN,)))
    state = runner.ready.state
    assert int(state.num_computed[0]) == 15
    assert not state.token_ids[1].any()


def test_a_kv_cache_is_released_before_the_next_is_allocated(tiny_models, monkeypatch):
    runner = make_runner(tiny_models.path("llama", head_dim=16))
    generate(runner, prompts_of(5), max_tokens=2)
    held = [weakref.ref(tensor) for tensor in (*runner.ready.steps.kv_caches, runner.ready.state.token_ids)]
    alive = []

    def make_ready(*args, **kwargs):
        alive.extend(tensor() is not None for tensor in held)
        return ready.make_ready(*args, **kwargs)

    monkeypatch.setattr(steps_module, "make_ready", make_ready)
    gc.disable()  # what only the collector finds is not released in time
    try:
        runner.initialize_kv_cache(8)
    finally:
        gc.enable()
    assert alive == [False] * len(held)


def test_prompt_logprobs_are_planned_once_a_step(tiny_models, monkeypatch):
    runner = make_runner(tiny_models.path("llama", head_dim=16))
    set_graphs(runner, EagerGraphs(runner.ready.steps, decodes=(1, 4), prompts=(16,)))
    chunks, calls = PromptLogprobRequests.chunks, []
    monkeypatch.setattr(
        PromptLogprobRequests, "chunks", lambda self, step: calls.append(step.step) or chunks(self, step)
    )
    asks = SamplingParams(temperature=0.0, prompt_logprobs=1, ignore_eos=True)
    run = generate(runner, prompts_of(9), max_tokens=2, params=asks)
    assert len(run.requests[0].prompt_logprobs) == 8
    assert len(calls) == 1  # the step of decodes has no prompt


@pytest.mark.gpu
def test_no_step_waits_for_the_device(tiny_models, monkeypatch):
    runner = make_runner(tiny_models.path("qwen3", head_dim=64), max_num_seqs=8)
    params = [GREEDY, RANDOM, *MIXED, SamplingParams(logprobs=2, prompt_logprobs=2)]
    prompts = prompts_of(*range(3, 3 + 5 * len(params), 5))
    generate(runner, prompts, max_tokens=5, params=params)  # compiles what this batch needs
    execute, sample = runner.execute_model, runner.sample_tokens

    def strictly(call):
        def run(*args):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return call(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    monkeypatch.setattr(runner, "execute_model", strictly(execute))
    monkeypatch.setattr(runner, "sample_tokens", strictly(sample))
    generate(runner, prompts, max_tokens=5, params=params)


@pytest.mark.gpu
@pytest.mark.parametrize("params", [GREEDY, RANDOM], ids=["greedy", "random"])
def test_graphs_and_eager_steps_agree(tiny_models, params):
    path = tiny_models.path("llama", head_dim=32)
    prompts = prompts_of(*range(1, 40, 3))
    outputs = [
        generate(
            make_runner(path, max_num_seqs=16, enforce_eager=eager), prompts, max_tokens=20, params=params
        ).outputs
        for eager in (False, True)
    ]
    assert outputs[0] == outputs[1]


def allocated_by_tensors():
    """Bytes of CUDA memory that tensors hold.

    cuBLAS takes a workspace for each stream when it is first called there, and the process keeps it: torch
    counts it, but it is no runner's.
    """
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


@pytest.mark.gpu
def test_memory_is_measured_and_given_back(tiny_models):
    path = tiny_models.path("qwen3", head_dim=64)
    before = allocated_by_tensors()
    runner = make_runner(
        path, load=False, gpu_memory_utilization=0.5, max_num_seqs=64, max_num_batched_tokens=512
    )
    runner.load_model()
    available = runner.determine_available_memory()
    most = 64 * 256 // 16 * runner.get_kv_cache_spec().bytes_per_block
    assert 0 < available <= most
    _, total = torch.cuda.mem_get_info()
    assert available < total // 2
    runner.initialize_kv_cache(available // runner.get_kv_cache_spec().bytes_per_block)
    warm_up(runner)
    runner.capture_graphs()
    assert generate(runner, prompts_of(5, 9), max_tokens=3).outputs
    runner.shutdown()
    runner.shutdown()
    del runner
    assert allocated_by_tensors() - before < 1 << 20


@pytest.mark.gpu
def test_reloaded_weights_reach_captured_graphs(tiny_models):
    path, other = tiny_models.path("llama", head_dim=16), tiny_models.path("llama", head_dim=16, seed=1)
    prompts = prompts_of(9)
    runner = make_runner(path)
    before = generate(runner, prompts, max_tokens=6).outputs
    expected = generate(make_runner(other), prompts, max_tokens=6).outputs
    from dodona.runners.v2.loading.loader import load_safetensors
    from dodona.runners.v2.models.registry import checkpoint_views

    load_safetensors(other, checkpoint_views(runner.loaded.spec, runner.loaded.model.weights), tied=False)
    assert generate(runner, prompts, max_tokens=6).outputs == expected != before
