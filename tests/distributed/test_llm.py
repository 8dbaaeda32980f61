"""An LLM whose model is split over processes: one engine for all that is asked of it, and its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.runners.errors import EngineDeadError, WorkerError
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.distributed.test_workers import gone
from tests.support.equal_tokens import EqualTokens
from tests.v1.test_greedy_tokens import NEW_TOKENS, mixed_prompts

CPU = Environment(has_triton=False, platform="cpu")


def split_llm(path, monkeypatch, **flat) -> LLM:
    """By a verdict that was reached where nothing was forced; the workers see a variable that forces V2."""
    settings = {"skip_tokenizer_init": True, "max_num_seqs": 8, "block_size": 4, **flat}
    machine = replace(CPU, packages=Environment.detect().packages)
    verdict = select_runner(EngineConfig.from_flat(str(path), device="cpu", **settings), environment=machine)
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "1")
    return LLM.from_verdict(verdict)


def worker_pids(llm: LLM) -> list[int]:
    return llm._client.call(lambda runner, _: [p.pid for p in runner._workers._processes])


@pytest.mark.slow
def test_tensor_parallel_engine(tiny_models, reference, monkeypatch):
    path = tiny_models.path("mixtral")
    plain = reference(path)
    prompts = mixed_prompts()
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, logprobs=1) for n in NEW_TOKENS]

    def check(llm: LLM) -> None:
        equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        for prompt, count, output in zip(prompts, NEW_TOKENS, outputs, strict=True):
            equal.compare(prompt, plain.generate(prompt, count), list(output.outputs[0].token_ids))
            for token_id, entry in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
                assert entry[token_id].rank == 1
        equal.check()

    # Chunks of at most 16 tokens, and blocks for two long requests only.
    with split_llm(
        path, monkeypatch, tensor_parallel_size=2, max_num_batched_tokens=16, num_gpu_blocks_override=28,
        max_model_len=96,
    ) as llm:  # fmt: skip
        pids = worker_pids(llm)
        assert len(pids) == 2
        specs = llm.collective_rpc("get_kv_cache_spec")
        assert [layer.num_kv_heads for spec in specs for layer in spec.layers] == [1] * 4
        check(llm)
        scheduler = llm._client.call(lambda _, scheduler: scheduler)
        assert scheduler.num_preemptions
        # Aborted in the middle; what comes after is not harmed.
        stream = llm.stream({"prompt_token_ids": prompts[3]}, SamplingParams(max_tokens=60, ignore_eos=True))
        next(stream)
        stream.close()
        llm.reload_weights()
        check(llm)
        assert scheduler.num_unfinished == 0

        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(EngineDeadError, match=r"rank 1 .*SIGKILL") as caught:
            llm.generate({"prompt_token_ids": prompts[0]}, params[0], use_tqdm=False)
        assert isinstance(caught.value.__cause__, WorkerError)
        assert caught.value.__cause__.rank == 1
    assert all(map(gone, pids))


@pytest.mark.slow
def test_stages_and_shared_prompts_in_processes(tiny_models, reference, monkeypatch):
    path = tiny_models.path("gemma2")
    plain, prompts = reference(path), mixed_prompts()
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in NEW_TOKENS]
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    with split_llm(
        path, monkeypatch, pipeline_parallel_size=2, prefill_context_parallel_size=2,
        max_num_batched_tokens=16, num_gpu_blocks_override=28, max_model_len=96,
    ) as llm:  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    for prompt, count, output in zip(prompts, NEW_TOKENS, outputs, strict=True):
        equal.compare(prompt, plain.generate(prompt, count), list(output.outputs[0].token_ids))
    equal.check()


@pytest.mark.slow
def test_replicas(tiny_models, reference, monkeypatch):
    path = tiny_models.path("llama")
    plain, prompts = reference(path), mixed_prompts()
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in NEW_TOKENS]
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    with split_llm(
        path, monkeypatch, data_parallel_size=2, num_gpu_blocks_override=28, max_model_len=96,
        max_num_batched_tokens=16,
    ) as llm:  # fmt: skip
        assert llm.num_kv_blocks == 56
        of_replicas = llm._client.call_all(lambda runner, _: [p.pid for p in runner._workers._processes])
        pids = [pid for of_one in of_replicas for pid in of_one]
        assert len(set(pids)) == 2
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        for prompt, count, output in zip(prompts, NEW_TOKENS, outputs, strict=True):
            equal.compare(prompt, plain.generate(prompt, count), list(output.outputs[0].token_ids))
        equal.check()
        assert min(llm._client.call_all(lambda _, scheduler: scheduler._num_steps)) > 0
        assert len(llm.collective_rpc("reload_weights")) == 2

        os.kill(of_replicas[1][0], signal.SIGKILL)
        both = [{"prompt_token_ids": prompt} for prompt in prompts[:2]]
        with pytest.raises(EngineDeadError, match=r"rank 0 of replica 1 .*SIGKILL"):
            llm.generate(both, params[0], use_tqdm=False)
        with pytest.raises(EngineDeadError, match="rank 0 of replica 1"):
            llm.generate([{"prompt_token_ids": prompts[0]}], params[0], use_tqdm=False)
    assert all(map(gone, pids))


@pytest.mark.slow
def test_a_start_that_fails_is_no_fault_of_a_rank(tiny_models, tmp_path, monkeypatch):
    """What fails alike on every rank is raised as it is without workers, and leaves nothing behind."""
    shutil.copy(tiny_models.path("llama") / "config.json", tmp_path)
    before = children()
    with pytest.raises(ConfigError, match="safetensors"):
        split_llm(tmp_path, monkeypatch, distributed_executor_backend="mp")
    assert children() == before


def children() -> set[int]:
    """Processes whose parent is this one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found
