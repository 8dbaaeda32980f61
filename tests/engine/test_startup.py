"""From a verdict to a runner: what is handed down, what is asked once, and what can't be built."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import load_rulebook
from dodona.runners import build as build_module
from dodona.runners.build import RUNNERS, build_runner
from dodona.runners.errors import EngineSetupError
from dodona.runners.limits import resolve_limits
from dodona.runners.llm import LLM
from dodona.runners.machine import torch_environment
from dodona.runners.startup import start
from tests.support.fake_runner import FAKE_MODEL, FakeRunner, fake_verdict

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"


def cpu_verdict() -> Any:
    return select_runner(EngineConfig.from_flat(str(QWEN3), device="cpu", max_num_seqs=2))


# --- Building


def test_what_is_given_is_handed_to_the_runner() -> None:
    verdict = cpu_verdict()
    model = ModelInfo.load(QWEN3)
    limits = resolve_limits(verdict.config, model)
    runner = build_runner(verdict, model, limits)
    assert runner.name == verdict.runner == "v1"
    assert runner.config is verdict.config
    assert runner.model_info is model
    assert runner.limits is limits


def test_what_is_not_given_is_resolved() -> None:
    verdict = cpu_verdict()
    for runner in (build_runner(verdict), verdict.build()):
        assert runner.model_info == ModelInfo.load(QWEN3)
        assert runner.limits == resolve_limits(verdict.config, runner.model_info)


def test_the_table_has_every_runner_of_the_own_book() -> None:
    pytest.importorskip("triton", reason="V2's modules import Triton, which exists for Linux only")
    for name in load_rulebook("dodona").runners:
        runner_class: Any = RUNNERS[name]()
        assert runner_class.name == name


def test_a_runner_that_there_is_none_of() -> None:
    verdict = cpu_verdict().model_copy(update={"runner": "tiny"})
    with pytest.raises(
        UnsupportedConfiguration, match=r"dodona chose runner 'tiny', and only v1, v2"
    ) as caught:
        build_runner(verdict)
    assert caught.value.verdict is verdict


# --- Starting


@pytest.mark.parametrize(
    "flat", [{"kv_cache_memory_bytes": 128 * 2000}, {"num_gpu_blocks_override": 2000}], ids=str
)
def test_a_runner_does_not_measure_what_is_configured(flat: dict[str, Any]) -> None:
    runner, scheduler, size = start(fake_verdict(block_size=4, **flat), FAKE_MODEL)
    assert isinstance(runner, FakeRunner)
    assert "determine_available_memory" not in runner.trace.calls
    assert runner.num_blocks == scheduler.blocks.num_blocks == size.num_blocks == 2000


@pytest.mark.parametrize("num_blocks", [2, 7, 2000])
@pytest.mark.parametrize("block_size", [1, 4])
def test_the_runner_is_told_the_length_that_its_blocks_hold(num_blocks: int, block_size: int) -> None:
    verdict = fake_verdict(block_size=block_size, num_gpu_blocks_override=num_blocks)
    runner, _, size = start(verdict, FAKE_MODEL)
    assert isinstance(runner, FakeRunner)
    assert runner.max_model_len == size.max_model_len == min(num_blocks * block_size, 4096)
    assert runner.limits.max_model_len == 4096
    assert len(runner.trace.steps) > 3, "warm-up fits into the lowered length"


def test_replicas_on_a_cpu_measure_once_all_have_their_weights() -> None:
    loaded, given_up = [threading.Event(), threading.Event()], threading.Event()
    made: list[FakeRunner] = []

    def build(*arguments: Any) -> FakeRunner:
        made.append(FakeRunner(*arguments))
        return made[-1]

    verdict = fake_verdict(build=build)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(start, verdict, FAKE_MODEL, 0, given_up, loaded)
        assert loaded[0].wait(30)
        with pytest.raises(TimeoutError):
            first.result(0.2)
        assert "load_model" in made[0].trace.calls
        assert "determine_available_memory" not in made[0].trace.calls
        start(verdict, FAKE_MODEL, 1, given_up, loaded)
        first.result(30)
        alone = pool.submit(start, verdict, FAKE_MODEL, 1, given_up, [threading.Event(), loaded[1]])
        given_up.set()
        with pytest.raises(EngineSetupError, match="given up"):
            alone.result(30)
    assert made[2].is_shut_down


def test_a_start_that_fails_shuts_the_runner_down() -> None:
    made: list[FakeRunner] = []

    def build(*arguments: Any) -> FakeRunner:
        made.append(FakeRunner(*arguments, on_step=fail))
        return made[0]

    def fail(_: int) -> None:
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        start(fake_verdict(build=build), FAKE_MODEL)
    assert made[0].is_shut_down


def test_the_model_is_loaded_and_the_limits_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = cpu_verdict()
    calls: list[str] = []

    def load(path: Any, original: Any = ModelInfo.load) -> ModelInfo:
        calls.append("ModelInfo.load")
        return original(path)

    def resolve(*arguments: Any, original: Any = resolve_limits) -> Any:
        calls.append("resolve_limits")
        return original(*arguments)

    monkeypatch.setattr(ModelInfo, "load", load)
    monkeypatch.setattr("dodona.runners.startup.resolve_limits", resolve)
    monkeypatch.setattr(build_module, "resolve_limits", resolve)
    with LLM.from_verdict(verdict) as llm:
        runner = llm._client.call(lambda runner, _: runner)
    assert sorted(calls) == ["ModelInfo.load", "resolve_limits"]
    assert runner.name == "v1"


# --- The machine


def test_the_machine_of_a_runner_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: pytest.fail("a CUDA context was made"))
    environment = torch_environment("cpu")
    assert (environment.platform, environment.has_triton) == ("cpu", False)


@pytest.mark.parametrize(("there", "platform", "capability"), [(True, "cuda", 89), (False, "cpu", None)])
def test_the_machine_of_a_runner_on_a_gpu(
    there: bool, platform: str, capability: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sizes = (SimpleNamespace(total_memory=24 << 30), SimpleNamespace(total_memory=16 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", sizes.__getitem__)
    environment = torch_environment("cuda")
    assert (environment.platform, environment.compute_capability) == (platform, capability)
    assert environment.device_count == (2 if there else None)
    assert environment.memory == (16 if there else None)


def test_memory_that_weights_can_not_have_is_named() -> None:
    class Large(FakeRunner):
        def load_model(self) -> None:
            raise MemoryError("Cannot allocate memory (os error 12)")

    with pytest.raises(EngineSetupError, match=r"model's weights can't be allocated: MemoryError: Cannot"):
        start(fake_verdict(build=Large), FAKE_MODEL)
