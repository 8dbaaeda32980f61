"""A running engine while its weights change: calls by name, sleep, and requests of one version each."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle.errors import ConfigError
from dodona.runners.errors import EngineAsleepError, InvalidRequestError
from dodona.runners.interface import Runner
from dodona.runners.llm import LLM
from dodona.runners.rpc import RPC_METHODS
from dodona.runners.sampling.params import SamplingParams
from tests.support.changes import check_changes
from tests.support.fake_llm import PATIENCE
from tests.support.fake_runner import FakeRunner, fake_verdict, solo_run
from tests.support.tiny_models import TinyModels

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


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
    """`python -m tests.support.changes --runner v2` does so with V2."""
    first, second = (tiny_models.path("llama", num_hidden_layers=1, head_dim=16, seed=n) for n in (0, 1))
    check_changes(tmp_path, (first, second), runner="v1", changes=100, clients=32)
