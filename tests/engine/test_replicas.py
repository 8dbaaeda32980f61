"""Several engines as one: where requests go, and every way in which replicas end together."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from dodona.oracle.errors import ConfigError
from dodona.runners import build
from dodona.runners.engine.events import Event
from dodona.runners.engine.replicas import Replicas
from dodona.runners.engine.request import Request
from dodona.runners.engine.routing import Router
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import (
    EngineAsleepError,
    EngineDeadError,
    EngineSetupError,
    EngineThreadError,
    InvalidRequestError,
)
from dodona.runners.sampling.params import SamplingParams
from tests.engine.test_boundaries import in_child
from tests.engine.test_engine import PATIENCE, Gate, expected
from tests.support.fake_llm import GREEDY, fake_llm, no_engine_thread, solo
from tests.support.fake_runner import FakeRunner, fake_runner


class Session:
    """Two engines over fake runners, as one."""

    def __init__(self, on_step: Sequence[Any] = (None, None)) -> None:
        sizes = {"block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 24}
        self.runners = [fake_runner(sizes, on_step=each) for each in on_step]
        self.schedulers = [
            Scheduler(num_blocks=40, block_size=4, max_num_seqs=6, max_num_batched_tokens=24) for _ in on_step
        ]
        self.replicas = Replicas([partial(self.start, number) for number in range(len(on_step))])

    def start(self, number: int) -> tuple[FakeRunner, Scheduler]:
        self.runners[number].initialize_kv_cache(40)
        return self.runners[number], self.schedulers[number]

    def request(self, name: str, prompt: list[int], sink: Any, **params: Any) -> Request:
        sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params})
        limit = len(prompt) + (sampling.max_tokens or 100)
        return Request(name, prompt, sampling, seed=0, limit=limit, sink=sink)

    def submit(self, name: str, prompt: list[int], **params: Any) -> tuple[Request, SimpleQueue[Event]]:
        events: SimpleQueue[Event] = SimpleQueue()
        request = self.request(name, prompt, events.put, **params)
        self.replicas.submit([request])
        return request, events

    def loads(self) -> Sequence[int]:
        assert self.replicas._router is not None
        return self.replicas._router.load


@contextmanager
def opened(*on_step: Any) -> Iterator[Session]:
    session = Session(on_step or (None, None))
    session.replicas.wait_until_ready()
    try:
        yield session
    finally:
        session.replicas.shutdown()
        assert no_engine_thread()


def test_many_threads_submit_and_abort() -> None:
    with opened() as session:

        def work(number: int) -> None:
            rng = random.Random(number)
            for turn in range(8):
                prompt = [rng.randrange(1, 4) for _ in range(rng.randrange(1, 15))]
                name = f"{number}-{turn % 2}"  # an id is free again once its request has ended
                request, events = session.submit(name, prompt, max_tokens=rng.randrange(1, 40))
                if rng.random() < 0.3:
                    session.replicas.abort(name)
                progress = events.get(timeout=PATIENCE)
                assert progress is not None
                assert request.token_ids == expected(request)[: len(request.token_ids)]
                assert progress.finish_reason == "abort" or request.token_ids == expected(request)

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, number) for number in range(4)]:
                future.result()
        assert all(runner.trace.steps for runner in session.runners)
        assert session.loads() == (0, 0)
        assert [scheduler.num_unfinished for scheduler in session.schedulers] == [0, 0]


def test_an_id_is_one_request_s_at_all_replicas() -> None:
    gates = Gate(), Gate()
    with opened(*gates) as session:
        try:
            session.submit("a", [1, 2])
            _, other = session.submit("b", [1, 2], max_tokens=1)
            assert len({routed.route.replica for routed in session.replicas._routes.values()}) == 2
            with pytest.raises(InvalidRequestError, match="'a' is in use"):
                session.submit("a", [3])
        finally:
            for gate in gates:
                gate.open()
        assert other.get(timeout=PATIENCE) is not None
        session.replicas.abort("a")


def test_what_ends_one_replica_ends_all() -> None:
    gates = Gate(RuntimeError("it is broken")), Gate()
    with opened(*gates) as session:
        queues = [session.submit(name, [1, 2])[1] for name in ("a", "b")]
        for gate in gates:
            gate.wait_until_entered()
        for gate, events in zip(gates, queues, strict=True):
            gate.open()
            assert events.get(timeout=PATIENCE) is None
        with pytest.raises(EngineDeadError, match="RuntimeError: it is broken") as caught:
            session.submit("c", [1])
        assert caught.value.__cause__.__notes__ == ["in replica 0 of 2"]
        assert str(session.replicas.dead_error()) == str(caught.value)


def test_replicas_that_differ_end_and_those_that_fail_alike_go_on() -> None:
    with opened() as session:
        with pytest.raises(ZeroDivisionError):
            session.replicas.call_all(lambda runner, scheduler: 1 / 0)
        ran_in = session.replicas.call_all(lambda runner, scheduler: scheduler)
        assert ran_in == session.schedulers

        def inside(runner: Any, scheduler: Any) -> None:
            session.replicas.call_all(lambda *_: None)

        with pytest.raises(EngineThreadError):
            session.replicas.call_all(inside)
        session.replicas.refuse_requests("asleep")
        with pytest.raises(EngineAsleepError):
            session.submit("a", [1])
        assert session.loads() == (0, 0)
        session.replicas.refuse_requests(None)

        def at_one(runner: Any, scheduler: Any) -> None:
            if scheduler is session.schedulers[1]:
                raise ConfigError("its disk is full")

        with pytest.raises(EngineDeadError, match="its disk is full"):
            session.replicas.call_all(at_one)
        with pytest.raises(EngineDeadError, match="its disk is full"):
            session.submit("a", [1])


def test_a_start_that_fails_lets_the_others_give_up() -> None:
    """Its error is raised, whichever engine is asked first."""
    given_up = threading.Event()

    def waits() -> tuple[FakeRunner, Scheduler]:
        assert given_up.wait(PATIENCE)
        raise EngineSetupError("the start was given up")

    def fails() -> tuple[FakeRunner, Scheduler]:
        raise ConfigError("no such file")

    for starts in ([waits, fails], [fails, waits]):
        given_up.clear()
        replicas = Replicas(starts, give_up=given_up.set)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no such file"):
            replicas.wait_until_ready()
        replicas.shutdown()
        assert no_engine_thread()


def test_a_start_that_fails_is_raised() -> None:
    session = Session()
    failing = Replicas([partial(session.start, 0), lambda: 1 / 0])  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        failing.wait_until_ready()
    failing.shutdown()
    session.replicas.shutdown()
    assert no_engine_thread()


def test_an_llm_with_replicas_in_threads(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything above the runner; that replicas work in processes is tested in tests/distributed."""
    monkeypatch.setattr(build, "uses_workers", lambda config: False)
    with fake_llm(model_dir, data_parallel_size=3, num_gpu_blocks_override=20) as llm:
        assert llm.num_kv_blocks == 60
        prompts = [[number, 1 + number % 3] for number in range(1, 12)]
        outputs = llm.generate(prompts, GREEDY)
        assert [output.outputs[0].token_ids for output in outputs] == [solo(prompt) for prompt in prompts]
        assert len(llm.collective_rpc("get_kv_cache_spec")) == 3
        several = llm.generate([[5, 6]], SamplingParams(n=3, temperature=1.0, max_tokens=4))[0]
        assert [output.index for output in several.outputs] == [0, 1, 2]
        llm.reload_weights()
        assert llm.generate([[1, 2]], GREEDY)[0].outputs[0].token_ids != solo([1, 2])
        llm.sleep(level=1)
        with pytest.raises(EngineAsleepError):
            llm.generate([[1, 2]], GREEDY)
        llm.wake_up()
        stream = llm.stream([[1, 2], [3, 4]], SamplingParams(max_tokens=50), request_id=["a", "b"])
        next(stream)
        stream.close()
        assert llm.draft_stats().num_drafts == 0
        assert llm._client.call_all(lambda _, scheduler: scheduler.num_unfinished, drain=True) == [0, 0, 0]
    assert no_engine_thread()


def test_requests_go_where_least_is_to_be_computed() -> None:
    router = Router(4, [10, 10])
    shared = [*range(16)]
    first = router.choose(shared, [20])
    assert (first.replica, first.cost) == (0, 20)
    # The other one is idle; then both know the prefix, but for the block with the prompt's last token.
    second = router.choose([*shared, 99], [27])
    assert (second.replica, second.cost) == (1, 27)
    third = router.choose([*shared, 98], [40])
    assert (third.replica, third.cost) == (0, 40 - 12)
    assert router.load == (48, 27)
    for route in (first, second, third):
        router.finished(route)
    assert router.load == (0, 0)
    # An adapter's prefixes are others; so are those of another beginning.
    assert router.choose([*shared, 98], [40], b"adapter").cost == 40
    assert router.choose([7, *shared], [40]).cost == 40


def test_a_replica_is_thought_to_hold_no_more_than_it_can() -> None:
    router = Router(2, [3, 0])
    long, short = [*range(100, 108)], [1, 2, 3]
    assert router.choose(long, [9]).replica == 0
    assert router.choose(short, [20]).replica == 1  # the cheaper one, which keeps nothing
    assert router.choose(short, [20]).cost == 20
    assert sum(map(len, router._known)) <= 3
    assert router.choose(long[:6], [1000]).cost in (1000, 996)
    assert Router(2, [0, 0]).choose(long, [9]).cost == 9


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_lock() -> None:
    gate = Gate()
    with opened(gate, gate) as session:
        try:
            session.submit("x", [1, 2], max_tokens=30)
            with session.replicas._lock:
                assert "another process" in in_child(lambda: str(session.submit("y", [1, 2])))
        finally:
            gate.open()
