"""Workers as Ray's actors on two machines: tokens equal one rank's, and failures name rank and machine.

Skips without Ray, and where no network namespaces can be made.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.equal_tokens import EqualTokens
from tests.support.ray_machines import FIRST, SECOND, Machines, lacks_machines, machines
from tests.v1.test_greedy_tokens import NEW_TOKENS, mixed_prompts

LACKS = lacks_machines()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS))]

LIMIT = 120.0
PORTS_OF_RAYS_WORKERS = range(10_002, 20_000)
SETTINGS = {
    "distributed_executor_backend": "ray",
    "max_num_batched_tokens": 16,
    "max_num_seqs": 8,
    "block_size": 4,
    "num_gpu_blocks_override": 28,
    "max_model_len": 96,
}


@pytest.fixture(scope="module")
def two() -> Iterator[Machines]:
    """Two machines of one CPU each."""
    with machines() as made:
        yield made


class Engine:
    """`ray_engine` on the first machine."""

    def __init__(self, made: Machines, path: Path, settings: dict[str, Any]) -> None:
        program = [sys.executable, "-m", "tests.distributed.ray_engine"]
        self._program = made.start(program, path.parent)
        self.tell([path.name, settings])  # a name that only the engine's folder makes a path

    def tell(self, what: Any) -> None:
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(what) + "\n")
        self._program.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line; Ray prints others."""
        assert self._program.stdout is not None
        for line in self._program.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError("the engine's process has ended")

    def generate(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
        self.tell([prompts, counts])
        tokens: list[list[int]] = self.answer()["tokens"]
        return tokens

    def end(self) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        assert self._program.wait(LIMIT) == 0


@contextmanager
def engine(made: Machines, path: Path, **settings: Any) -> Iterator[Engine]:
    started = Engine(made, path, {**SETTINGS, **settings})
    try:
        yield started
    finally:
        if started._program.poll() is None:
            started._program.kill()
        started._program.wait()


def workers_of(made: Machines, machine: int) -> list[int]:
    return [pid for pid, command in made.processes(machine).items() if "WorkerActor" in command]


def wait_until_none(made: Machines, machine: int) -> None:
    deadline = time.monotonic() + LIMIT
    while any("Actor" in command for command in made.processes(machine).values()):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"tensor_parallel_size": 2, "kv_offloading_size": 0.001}),
        ("llama", {"pipeline_parallel_size": 2}),
        ("llama", {"prefill_context_parallel_size": 2}),
        ("mixtral", {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
        (
            "qwen3-next",
            {"data_parallel_size": 2, "data_parallel_backend": "ray", "distributed_executor_backend": None},
        ),
    ],
    ids=str,
)
def test_tokens_equal_one_ranks(two, tiny_models, reference, family, sizes) -> None:
    path = tiny_models.path(family)
    plain, prompts = reference(path), mixed_prompts()
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    open_before = two.listening()
    with engine(two, path, **sizes) as started:
        first = started.answer()
        assert first["verdict"] == "v1"
        if "data_parallel_size" not in sizes:
            assert [place.rpartition(" ")[2] for place in first["processes"]] == [FIRST, SECOND]
        assert [len(workers_of(two, machine)) for machine in (0, 1)] == [1, 1]
        for address, port in (where.split(":") for where in two.listening() - open_before):
            if int(port, 16) not in PORTS_OF_RAYS_WORKERS:
                assert set(address) != {"0"}, f"port {int(port, 16)} is open on all interfaces"
        for prompt, count, tokens in zip(
            prompts, NEW_TOKENS, started.generate(prompts, NEW_TOKENS), strict=True
        ):
            equal.compare(prompt, plain.generate(prompt, count), tokens)
        equal.check()
        started.end()
    for machine in (0, 1):
        wait_until_none(two, machine)


def test_a_worker_that_dies_on_the_other_machine(two, tiny_models) -> None:
    with engine(two, tiny_models.path("llama"), tensor_parallel_size=2) as started:
        started.answer()
        (worker,) = workers_of(two, 1)
        os.kill(worker, signal.SIGKILL)
        started.tell([[[1, 2, 3]], [4]])
        answer = started.answer()
        assert answer["rank"] == 1
        assert f"on {SECOND}) was lost; Ray says: " in answer["error"]
        assert started.answer() == {"ended": True}
    for machine in (0, 1):
        wait_until_none(two, machine)


def test_what_is_stopped_on_the_other_machine_is_killed(two, tiny_models) -> None:
    with engine(
        two, tiny_models.path("llama"), tensor_parallel_size=2, distributed_timeout_seconds=3
    ) as started:
        started.answer()
        (worker,) = workers_of(two, 1)
        os.kill(worker, signal.SIGSTOP)
        started.tell([[[1, 2, 3]], [4]])
        answer = started.answer()
        assert answer["rank"] == 1
        assert f"on {SECOND}) is stopped and gave no answer within 3 s" in answer["error"]
    for machine in (0, 1):
        wait_until_none(two, machine)


def test_workers_end_with_the_engine(two, tiny_models) -> None:
    with engine(two, tiny_models.path("llama"), tensor_parallel_size=2) as started:
        started.answer()
        started._program.kill()
    for machine in (0, 1):
        wait_until_none(two, machine)


def test_what_there_is_no_room_for(two, tiny_models, tmp_path) -> None:
    with engine(two, tiny_models.path("llama"), tensor_parallel_size=2, pipeline_parallel_size=2) as started:
        assert "no room for 4 workers of one CPU each within" in started.answer()["error"]
    shared = {
        "kv_connector": "SharedMemoryConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_memory_path": str(tmp_path), "memory_bytes": 1 << 20},
    }
    with engine(two, tiny_models.path("llama"), tensor_parallel_size=2, kv_transfer_config=shared) as started:
        assert "no room for 2 workers of one CPU each on this machine" in started.answer()["error"]


def test_a_machine_that_is_cut_off(tiny_models) -> None:
    with machines() as made, engine(made, tiny_models.path("llama"), tensor_parallel_size=2) as started:
        started.answer()
        made.cut_cable()
        began = time.monotonic()
        started.tell([[[1, 2, 3]], [4]])
        answer = started.answer()
        assert time.monotonic() - began < LIMIT
        assert answer["rank"] == 1
        assert f"on {SECOND}) was lost" in answer["error"]
        deadline = time.monotonic() + LIMIT
        while workers_of(made, 0) or workers_of(made, 1):  # though neither machine hears of the other
            assert time.monotonic() < deadline, "workers live on"
            time.sleep(0.1)
