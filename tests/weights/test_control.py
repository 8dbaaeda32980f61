"""A running engine while its weights change: calls by name, sleep, and requests of one version each."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dodona import LoRARequest
from dodona.oracle.errors import ConfigError
from dodona.runners.errors import EngineAsleepError, InvalidRequestError
from dodona.runners.interface import Runner
from dodona.runners.llm import LLM
from dodona.runners.rpc import RPC_METHODS
from dodona.runners.sampling.params import SamplingParams
from tests.support.adapters import write_adapter
from tests.support.fake_runner import FakeRunner, fake_verdict, solo_run
from tests.support.tiny_models import TinyModels

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PATIENCE = 30.0


@pytest.fixture
def model_dir(tiny_models: TinyModels) -> Path:
    return tiny_models.path("llama", num_hidden_layers=1)


def fake_llm(model_dir: Path, runner: Callable[..., Runner] = FakeRunner, **flat: Any) -> LLM:
    sizes = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, **flat}
    return LLM.from_verdict(fake_verdict(str(model_dir), runner, **sizes))


def solo(prompt: list[int], weights: int = 0) -> list[int]:
    return solo_run(prompt, GREEDY, vocab_size=97, max_model_len=64, weights=weights)[0]


# --- Calls by name


@pytest.mark.parametrize(
    "name",
    ["shutdown", "initialize_kv_cache", "load_model", "execute_model", "_change_weights", "__init__",
     "config", "collective_rpc", "no_such", "", 7, None, len],
)  # fmt: skip
def test_only_public_methods_can_be_called(model_dir: Path, name: Any) -> None:
    with fake_llm(model_dir) as llm:
        with pytest.raises(InvalidRequestError, match=r"can't be called by name.*reload_weights"):
            llm.collective_rpc(name, (-5,))
        assert llm.generate([1], GREEDY)[0].outputs[0].token_ids == solo([1])


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "words"),
    [
        ("reload_weights", (1, 2), {}, "reload_weights: too many positional arguments"),
        ("sleep", (), {"depth": 1}, "sleep: got an unexpected keyword argument 'depth'"),
        ("update_config", (), {}, "update_config: missing a required argument: 'overrides'"),
    ],
)
def test_arguments_are_checked(model_dir: Path, method: str, args: Any, kwargs: Any, words: str) -> None:
    with fake_llm(model_dir) as llm:
        with pytest.raises(InvalidRequestError, match=words):
            llm.collective_rpc(method, args, kwargs)
        assert not llm.is_sleeping()
        assert llm.generate([1], GREEDY)[0].error is None


def test_every_method_on_the_list_is_one_of_the_interface() -> None:
    assert all(callable(getattr(Runner, method)) for method in RPC_METHODS)


def test_what_a_method_raises_names_the_worker(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        with pytest.raises(ConfigError) as caught:
            llm.collective_rpc("update_config", ({"load_confg": {}},))
        assert caught.value.__notes__ == ["update_config in worker 0 of 1"]
        assert llm.collective_rpc("update_config", ({"load_config": {"load_format": "dummy"}},)) == [None]
        assert llm.config.load_config.load_format == "dummy"
        assert llm.verdict.config.load_config.load_format == "auto"


class _Workers(FakeRunner):
    """Three workers, of which the later ones fail."""

    def collective_rpc(self, method: str, args: Any = (), kwargs: Any = None) -> list[Any]:
        from dodona.runners.rpc import call_worker

        others = [FakeRunner(self.config, self.model_info, self.limits) for _ in range(2)]
        workers = [self, *others]
        return [
            call_worker(worker, method, args, kwargs, rank=rank, num_workers=3)
            for rank, worker in enumerate(workers)
        ]


def test_results_come_in_the_order_of_ranks(model_dir: Path) -> None:
    with fake_llm(model_dir, _Workers) as llm:
        assert len(llm.collective_rpc("get_kv_cache_spec")) == 3


# --- Sleep


def test_a_sleeping_engine_refuses_requests_by_name(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        prompt = [1] * 9
        llm.generate(prompt, GREEDY)
        llm.sleep()
        assert llm.is_sleeping()
        for use in (lambda: llm.generate(prompt, GREEDY), lambda: llm.stream(prompt, GREEDY)):
            with pytest.raises(EngineAsleepError, match="asleep; call wake_up first"):
                use()
        with pytest.raises(EngineAsleepError, match="asleep already"):
            llm.sleep(2)
        llm.wake_up(["weights"])
        assert llm.is_sleeping()
        llm.wake_up(["kv_cache"])
        assert not llm.is_sleeping()
        (output,) = llm.generate(prompt, GREEDY)
        assert output.num_cached_tokens == 0, "the KV cache is lost"
        llm.wake_up()


def test_after_level_2_weights_must_be_loaded(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        for load in (
            llm.reload_weights,
            lambda: llm.load_weights([]),
            lambda: llm.collective_rpc("reload_weights"),
        ):
            llm.sleep(level=2)
            llm.wake_up()
            with pytest.raises(EngineAsleepError, match="call reload_weights or load_weights first"):
                llm.generate([1], GREEDY)
            assert llm.is_sleeping()
            load()
            assert llm.generate([1], GREEDY)[0].error is None


def test_a_refused_sleep_leaves_the_engine_awake(model_dir: Path) -> None:
    class Sleepless(FakeRunner):
        def sleep(self, level: int = 1) -> None:
            raise InvalidRequestError("not now")

    with fake_llm(model_dir, Sleepless) as llm:
        with pytest.raises(InvalidRequestError, match="not now"):
            llm.sleep()
        assert not llm.is_sleeping()
        assert llm.generate([1], GREEDY)[0].error is None


def test_sleep_waits_for_running_requests(model_dir: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def on_step(step: int) -> None:
        entered.set()
        assert go.wait(PATIENCE)

    go.set()
    with fake_llm(model_dir, partial(FakeRunner, on_step=on_step)) as llm, ThreadPoolExecutor(2) as pool:
        go.clear()
        entered.clear()
        running = pool.submit(llm.generate, [1], GREEDY)
        assert entered.wait(PATIENCE)
        asleep = pool.submit(llm.sleep)
        deadline = time.monotonic() + PATIENCE
        while llm._client._engine._refusal is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(EngineAsleepError):
            llm.generate([2], GREEDY)
        go.set()
        assert running.result(PATIENCE)[0].outputs[0].token_ids == solo([1])
        asleep.result(PATIENCE)
        llm.wake_up()


# --- Many changes while requests run


def test_a_hundred_changes_while_32_requests_run_mix_no_versions(model_dir: Path) -> None:
    """With the fake runner, whose every token tells the version of the weights that made it."""
    with fake_llm(model_dir, partial(FakeRunner, max_steps_in_flight=2), max_num_seqs=32) as llm:
        done = threading.Event()
        prompts = [[i + 1] * (2 * i + 1) for i in range(8)]
        by_tokens = [{tuple(solo(prompt, v)): v for v in range(101)} for prompt in prompts]
        versions: set[int] = set()

        def work(number: int) -> None:
            for turn in itertools.count():
                if done.is_set() and turn:
                    return
                (output,) = llm.generate(prompts[number % 8], GREEDY, use_tqdm=False)
                versions.add(by_tokens[number % 8][tuple(output.outputs[0].token_ids)])

        with ThreadPoolExecutor(32) as pool:
            workers = [pool.submit(work, number) for number in range(32)]
            for change in range(100):
                if change % 2:
                    llm.reload_weights()
                else:
                    llm.apply_sparse_weight_patches({})
            done.set()
            for worker in workers:
                worker.result(PATIENCE)
        blocks = llm._client._engine.call(lambda runner, scheduler: scheduler.blocks)
        assert blocks.num_free == blocks.num_blocks
        assert len(versions) > 20


def test_a_real_model_changes_while_it_serves(tiny_models: TinyModels, tmp_path: Path) -> None:
    first, second = (tiny_models.path("llama", num_hidden_layers=1, seed=seed) for seed in (0, 1))
    path = tmp_path / "model"
    shutil.copytree(first, path)
    weights = load_file(path / "model.safetensors")
    row = weights["lm_head.weight"].shape[1]
    # Makes token 7 the likeliest after anything that the old row liked.
    places = torch.arange(7 * row, 8 * row)
    patch = {"lm_head.weight": (places, 4 * weights["lm_head.weight"][9])}
    prompts = [[i + 1, 2 * i + 1, 3] for i in range(8)]
    settings = {
        "device": "cpu", "block_size": 4, "max_num_seqs": 32, "num_gpu_blocks_override": 200,
        "skip_tokenizer_init": True, "enable_lora": True, "max_loras": 2,
    }  # fmt: skip
    layers = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.0.mlp.down_proj": (48, 32)}
    adapters = [
        LoRARequest(str(i), i, str(write_adapter(tmp_path / f"adapter-{i}", layers, seed=i))) for i in (1, 2)
    ]
    kinds = (None, *adapters)
    with LLM(str(path), **settings) as llm:

        def run() -> list[list[int]]:
            """All prompts without an adapter, then with each of the two."""
            outputs = llm.generate(
                prompts * 3, GREEDY, use_tqdm=False, lora_request=[kind for kind in kinds for _ in prompts]
            )
            return [output.outputs[0].token_ids for output in outputs]

        changes = [
            lambda: llm.reload_weights(first),
            lambda: llm.reload_weights(second),
            lambda: llm.apply_sparse_weight_patches(patch),
        ]
        known = []
        for change in changes:
            change()
            known.append(run())
        held = sorted(
            t.data_ptr()
            for t in llm._client._engine.call(lambda runner, _: runner._weight_views().views).values()
        )
        assert known[0] != known[1] != known[2]
        assert all(answers[:8] != answers[8:16] != answers[16:] for answers in known)
        done = threading.Event()

        def work(number: int) -> int:
            for turn in itertools.count():
                if done.is_set() and turn:
                    return turn
                kind, index = (number + turn) % 3, number % len(prompts)
                (output,) = llm.generate(prompts[index], GREEDY, use_tqdm=False, lora_request=kinds[kind])
                place = kind * len(prompts) + index
                assert output.outputs[0].token_ids in [answers[place] for answers in known]
            raise AssertionError

        with ThreadPoolExecutor(32) as pool:
            workers = [pool.submit(work, number) for number in range(32)]
            for change in range(100):
                changes[change % 2 if change % 10 else 2]()
                if not change % 10:
                    changes[1]()
                llm.remove_lora(1 + change % 2)
                llm.add_lora(replace(adapters[change % 2], load_inplace=True))
            done.set()
            assert sum(worker.result(PATIENCE) for worker in workers) > 64
        changes[0]()
        assert run() == known[0]
        views = llm._client._engine.call(lambda runner, _: runner._weight_views().views)
        assert sorted(t.data_ptr() for t in views.values()) == held
        blocks = llm._client._engine.call(lambda runner, scheduler: scheduler.blocks)
        assert blocks.num_free == blocks.num_blocks
    assert not any(thread.name == "dodona-engine" for thread in threading.enumerate())
