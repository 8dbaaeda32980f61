"""Workers as Ray's actors: tokens equal one rank's, and nothing is left behind. Skips without the extra."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dodona.oracle.errors import ConfigError
from dodona.runners.distributed.messages import Call, Execute, Sample
from dodona.runners.distributed.ray_workers import ray_workers
from dodona.runners.distributed.workers import Workers
from dodona.runners.errors import EngineDeadError, EngineSetupError, WorkerError
from dodona.runners.sampling.params import SamplingParams
from tests.distributed.test_llm import children, split_llm, worker_pids
from tests.distributed.test_workers import LIMIT, RANKS, gone, pids, workers
from tests.support.equal_tokens import EqualTokens
from tests.v1.test_greedy_tokens import NEW_TOKENS, mixed_prompts

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'dodona[ray]'"
)


def wait_until_gone(processes: list[int]) -> None:
    """Ray reaps them soon after they ended."""
    deadline = time.monotonic() + LIMIT
    while not all(map(gone, processes)):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.05)


def listening() -> set[str]:
    """Addresses at which some process of this machine listens, as /proc shows them."""
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return {line[1] for line in lines if line[3] == "0A"}


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """Keeps the Ray that the first engine would start for itself, and looks at what is left when it ends."""
    before, open_before = children(), listening()
    launch = functools.partial(ray_workers, sharing=6)
    keeper = Workers(1, launch=launch)
    try:
        beyond = {address for address in listening() - open_before if not address.startswith(LOOPBACK)}
        assert not beyond
        yield
    finally:
        keeper.stop()
    assert children() == before


@pytest.mark.slow
@needs_ray
def test_calls_and_failures_are_those_of_processes(own_ray: None) -> None:
    def failing(started: Workers, what: str = "execute_model", limit: float = LIMIT) -> WorkerError:
        processes = pids(started)
        with pytest.raises(WorkerError) as caught:
            started.answers([0] if what == "execute_model" else RANKS, what, limit)
        wait_until_gone(processes)
        assert not Path(started.store).parent.exists()
        return caught.value

    launch = functools.partial(ray_workers, sharing=6)
    with workers(launch=launch) as started:
        processes, folder = pids(started), Path(started.store).parent
        started.tell(Call("echo", ("a",), {"b": 1}))
        assert started.answers(RANKS, "echo", LIMIT) == [("a", 1), ("a", 1)]
        started.tell(Call("refuse", ("block_size",)))
        with pytest.raises(ConfigError, match="block_size"):
            started.answers(RANKS, "refuse", LIMIT)
        started.stop()
        wait_until_gone(processes)
        assert not folder.exists()

    with workers(launch=launch) as started:
        started.tell(Execute(("raise", "no memory left"), None), [1])  # type: ignore[arg-type]
        started.tell(Execute(("sleep", 60.0), None), [0])  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        error = failing(started)
    assert error.rank == 1
    assert "RuntimeError: no memory left" in str(error)
    assert "about to raise" in str(error)  # its output

    with workers(launch=launch) as started:
        started.tell(Execute(("die", int(signal.SIGKILL)), None), [1])  # type: ignore[arg-type]
        started.tell(Execute(("raise when peers are gone", 0.3), None), [0])  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        error = failing(started)
    assert error.rank == 1
    assert "was lost; Ray says: " in str(error)
    assert "about to die" in str(error)

    with workers(launch=launch) as started:
        os.kill(pids(started)[1], signal.SIGSTOP)
        started.tell(Call("echo", ("a",), {"b": 1}))
        error = failing(started, "echo", 2.0)
    assert error.rank == 1
    assert "is stopped and gave no answer within 2 s to echo" in str(error)

    with pytest.raises(EngineSetupError, match="no room for 7 workers"):
        Workers(7, launch=functools.partial(ray_workers, sharing=6, room_s=1.0))


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"tensor_parallel_size": 2}),
        ("llama", {"pipeline_parallel_size": 2}),
        ("llama", {"data_parallel_size": 2, "prefill_context_parallel_size": 2}),
        ("mixtral", {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
        ("qwen3-next", {"pipeline_parallel_size": 2}),
    ],
    ids=str,
)
def test_tokens_equal_one_ranks(own_ray: None, tiny_models, reference, monkeypatch, family, sizes) -> None:
    path = tiny_models.path(family)
    plain, prompts = reference(path), mixed_prompts()
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in NEW_TOKENS]
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    with split_llm(
        path, monkeypatch, distributed_executor_backend="ray", max_num_batched_tokens=16,
        num_gpu_blocks_override=28, max_model_len=96, **sizes,
    ) as llm:  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        for prompt, count, output in zip(prompts, NEW_TOKENS, outputs, strict=True):
            equal.compare(prompt, plain.generate(prompt, count), list(output.outputs[0].token_ids))
        equal.check()
        if "data_parallel_size" in sizes or family != "llama":
            return
        assert len(llm.collective_rpc("reload_weights")) == 2
        processes = worker_pids(llm)
        os.kill(processes[1], signal.SIGKILL)
        with pytest.raises(EngineDeadError, match=r"rank 1 .*was lost; Ray says: ") as caught:
            llm.generate({"prompt_token_ids": prompts[0]}, params[0], use_tqdm=False)
        assert isinstance(caught.value.__cause__, WorkerError)
        assert caught.value.__cause__.rank == 1
    wait_until_gone(processes)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineSetupError, match=r"pip install 'dodona\[ray\]'"):
        Workers(2, launch=functools.partial(ray_workers, sharing=2))
