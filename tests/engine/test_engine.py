"""The engine's thread: many callers, and every way it may end."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest

from dodona.runners.engine.engine import Engine
from dodona.runners.engine.events import Event
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineDeadError, InvalidRequestError
from dodona.runners.interface import GrammarOutput, PendingOutput, StepOutput
from dodona.runners.sampling.params import SamplingParams
from tests.support.fake_llm import PATIENCE
from tests.support.fake_runner import FakeRunner, fake_runner, solo_run


class Gate:
    """Holds the engine's thread in a step until it is opened."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self._entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, step: int) -> None:
        self._entered.set()
        assert self._open.wait(PATIENCE)
        if self._error is not None:
            raise self._error

    def wait_until_entered(self) -> None:
        assert self._entered.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Opened:
    """An engine over a fake runner, and what tests want to see of the two."""

    def __init__(self, *, max_steps_in_flight: int = 1, on_step: Callable[[int], None] | None = None) -> None:
        self.runner = fake_runner(
            {"block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 24},
            max_steps_in_flight=max_steps_in_flight,
            on_step=on_step,
        )
        self.scheduler = Scheduler(num_blocks=40, block_size=4, max_num_seqs=6, max_num_batched_tokens=24)
        self.events: dict[str, SimpleQueue[Event]] = {}
        """By request id."""
        self.engine = Engine(self.start)

    def start(self) -> tuple[FakeRunner, Scheduler]:
        self.runner.initialize_kv_cache(40)
        return self.runner, self.scheduler

    def submit(self, name: str, prompt: list[int], **params: Any) -> Request:
        sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params})
        events = SimpleQueue[Event]()
        limit = len(prompt) + (sampling.max_tokens or 100)
        request = Request(name, prompt, sampling, seed=0, limit=limit, sink=events.put)
        self.engine.submit([request])
        self.events[name] = events
        return request

    def submit_together(self, names: Sequence[str]) -> list[Request]:
        """Requests of one token each, as one command."""
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=2)
        queues = {name: SimpleQueue[Event]() for name in names}
        requests = [
            Request(name, [1], params, seed=0, limit=3, sink=events.put) for name, events in queues.items()
        ]
        self.engine.submit(requests)
        self.events.update(queues)
        return requests

    def next_event(self, request: Request) -> Event:
        return self.events[request.request_id].get(timeout=PATIENCE)

    def finish(self, request: Request) -> Request:
        progress = self.next_event(request)
        assert progress is not None
        assert progress.finish_reason is not None
        return request


@contextmanager
def opened(**settings: Any) -> Iterator[Opened]:
    session = Opened(**settings)
    session.engine.wait_until_ready()
    try:
        yield session
    finally:
        session.engine.shutdown()
        assert not any(thread.name == "dodona-engine" for thread in threading.enumerate())


def expected(request: Request) -> list[int]:
    prompt = request.token_ids[: request.num_prompt_tokens]
    return prompt + solo_run(prompt, request.params, vocab_size=97, max_model_len=1000)[0]


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
def test_many_threads_submit_and_abort(max_steps_in_flight: int) -> None:
    with opened(max_steps_in_flight=max_steps_in_flight) as session:

        def work(number: int) -> tuple[int, int]:
            rng = random.Random(number)
            whole = aborted = 0
            for turn in range(8):
                prompt = [rng.randrange(1, 4) for _ in range(rng.randrange(1, 15))]
                request = session.submit(f"{number}-{turn}", prompt, max_tokens=rng.randrange(1, 40))
                if rng.random() < 0.3:
                    session.engine.abort(request.request_id)
                session.finish(request)
                if request.finish_reason == "abort":
                    aborted += 1
                    assert request.token_ids == expected(request)[: len(request.token_ids)]
                else:
                    whole += 1
                    assert request.token_ids == expected(request)
            return whole, aborted

        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(work, range(8)))
        assert sum(whole for whole, _ in counts) > 30
        # The engine may still be reading a step that ends made moot.
        session.engine.call(lambda runner, scheduler: None)
        assert session.scheduler.blocks.num_free == 40
        assert session.scheduler.num_free_rows == 6


def test_only_the_engines_thread_calls_the_runner() -> None:
    with opened() as session:
        session.finish(session.submit("x", [1]))
        thread = session.engine.call(lambda runner, _: threading.current_thread())
        assert (thread.name, thread.daemon) == ("dodona-engine", True)  # it keeps no program from its end
    assert session.runner.trace.threads <= {"dodona-engine", "MainThread"}
    assert session.runner.is_shut_down


def test_an_id_in_use_is_refused_and_free_afterwards() -> None:
    gate = Gate()
    with opened(on_step=gate) as session:
        first = session.submit("x", [1])
        with pytest.raises(InvalidRequestError, match="'x' is in use"):
            session.submit("x", [1])
        gate.open()
        session.finish(first)
        session.finish(session.submit("x", [1]))


def test_an_idle_engine_takes_aborts_at_once() -> None:
    """They do not stay until the next request comes, which may have the same id."""
    with opened() as session:
        session.finish(session.submit("x", [1], max_tokens=2))
        session.engine.abort("x", "unknown")
        wait_for(lambda: not session.engine._inbox)
        session.engine.call(lambda runner, scheduler: None)
        again = session.finish(session.submit("x", [1], max_tokens=2))
    assert (again.finish_reason, again.num_output_tokens) == ("length", 2)


def fail_at(number: int) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if step == number:
            raise ValueError("the device is on fire")

    return on_step


def test_an_error_in_a_step_reaches_everybody_who_waits() -> None:
    session = Opened(on_step=fail_at(3))
    requests = [session.submit(str(i), [1, 2], max_tokens=50) for i in range(3)]
    for request in requests:
        assert session.next_event(request) is None
    error = session.engine.dead_error()
    assert "ValueError: the device is on fire" in str(error)
    assert isinstance(error.__cause__, ValueError)
    for use in (
        lambda: session.submit("late", [1]),
        lambda: session.engine.call(lambda runner, scheduler: None),
    ):
        with pytest.raises(EngineDeadError, match="the device is on fire"):
            use()
    session.engine.shutdown()
    session.engine.abort("0")
    assert session.runner.is_shut_down


def test_an_error_while_a_call_waits_answers_the_call() -> None:
    gate = Gate(ValueError("the device is on fire"))
    session = Opened(on_step=gate)
    session.submit("x", [1])
    gate.wait_until_entered()
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(session.engine.call, lambda runner, scheduler: None, drain=drain)
            for drain in (True, False)
        ]
        wait_for(lambda: len(session.engine._inbox) == 2)
        gate.open()
        for call in calls:
            with pytest.raises(EngineDeadError) as caught:
                call.result(PATIENCE)
            assert isinstance(caught.value.__cause__, ValueError)
    session.engine.shutdown()


def test_a_dead_engine_keeps_nothing_of_the_step_alive() -> None:
    class Activations:
        pass

    seen: list[weakref.ref[Activations]] = []

    def on_step(step: int) -> None:
        big = Activations()
        seen.append(weakref.ref(big))
        raise ValueError("out of memory")

    session = Opened(on_step=on_step)
    request = session.submit("x", [1])
    assert session.next_event(request) is None
    session.engine.shutdown()
    gc.collect()
    assert session.engine.dead_error().__cause__ is not None
    assert [ref() for ref in seen] == [None]


def test_shutdown_reaches_everybody_who_waits() -> None:
    gate = Gate()
    session = Opened(on_step=gate)
    request = session.submit("x", [1], max_tokens=None)
    gate.wait_until_entered()
    cause = KeyboardInterrupt()
    stopper = threading.Thread(target=session.engine.shutdown, args=(cause,))
    stopper.start()
    wait_for(lambda: session.engine._end is not None)
    gate.open()
    while (progress := session.next_event(request)) is not None:
        assert progress.finish_reason is None
    stopper.join(PATIENCE)
    assert session.engine.dead_error().__cause__ is cause
    session.engine.shutdown()


def test_an_engine_that_has_ended_keeps_no_queued_request_alive() -> None:
    class Sink:
        def __call__(self, event: Event) -> None:
            assert event is None

    gate = Gate()
    session = Opened(on_step=gate)
    session.submit("x", [1])
    gate.wait_until_entered()
    sink = Sink()
    seen = weakref.ref(sink)
    session.engine.submit([Request("queued", [1], SamplingParams(), seed=0, limit=9, sink=sink)])
    del sink
    stopper = threading.Thread(target=session.engine.shutdown)
    stopper.start()
    wait_for(lambda: session.engine._end is not None)
    gate.open()
    stopper.join(PATIENCE)
    gc.collect()
    assert seen() is None


def test_an_engine_that_was_shut_down_says_so() -> None:
    with opened() as session:
        session.finish(session.submit("x", [1]))
    with pytest.raises(EngineDeadError, match=r"^the engine was shut down$") as caught:
        session.submit("late", [1])
    assert caught.value.__cause__ is None
    with pytest.raises(EngineDeadError, match="shut down"):
        session.engine.call(lambda runner, scheduler: None)
    session.engine.abort("x")


@pytest.mark.parametrize("fails_in_a_step", [False, True])
def test_an_error_in_a_shutdown_hides_no_other_and_keeps_nobody_waiting(
    fails_in_a_step: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(RuntimeError("the step failed") if fails_in_a_step else None)
    session = Opened(on_step=gate)
    called = []

    def failing(name: str) -> Callable[[], None]:
        def shutdown() -> None:
            called.append(name)
            raise ValueError(f"no end of {name}")

        return shutdown

    session.runner.shutdown = failing("workers")  # type: ignore[method-assign]
    session.scheduler.transfers.connector.shutdown = failing("files")  # type: ignore[method-assign]
    request = session.submit("x", [1], max_tokens=None)
    gate.wait_until_entered()
    waiting = session.engine.post(lambda runner, scheduler: None, drain=True)
    if not fails_in_a_step:
        session.engine.end(None)
    gate.open()
    assert session.next_event(request) is None
    with pytest.raises(EngineDeadError, match="the step failed" if fails_in_a_step else "was shut down"):
        waiting.result(timeout=PATIENCE)
    session.engine.shutdown()
    assert called == ["workers", "files"]
    logged = [(record.message, str(record.exc_info[1])) for record in caplog.records if record.exc_info]
    assert logged == [
        ("the shutdown of the runner failed", "no end of workers"),
        ("the shutdown of the KV connector failed", "no end of files"),
    ]


def test_an_error_at_the_start_is_raised_to_the_one_who_starts() -> None:
    def start() -> tuple[FakeRunner, Scheduler]:
        raise ValueError("no such weights")

    engine = Engine(start)
    with pytest.raises(ValueError, match="no such weights"):
        engine.wait_until_ready()
    engine.shutdown()
    with pytest.raises(EngineDeadError):
        engine.submit([])


def test_a_call_that_wants_to_be_alone_waits_and_lets_nobody_past() -> None:
    gate = Gate()
    order: list[str] = []
    with opened(on_step=gate) as session, ThreadPoolExecutor(1) as pool:
        before = session.submit("before", [1], max_tokens=5)
        gate.wait_until_entered()
        alone = pool.submit(
            session.engine.call,
            lambda runner, scheduler: order.append(f"alone, {scheduler.num_unfinished} unfinished"),
            drain=True,
        )
        wait_for(lambda: len(session.engine._inbox) == 1)
        after = session.submit("after", [1], max_tokens=2)
        dropped = session.submit("dropped", [1], max_tokens=2)
        session.engine.abort("dropped")
        gate.open()
        session.finish(dropped)
        assert dropped.finish_reason == "abort"
        session.finish(before)
        alone.result(PATIENCE)
        session.finish(after)
        assert order == ["alone, 0 unfinished"]
        assert session.runner.trace.request_ids == ["before", "after"]
    assert before.token_ids == expected(before)


def test_what_was_aborted_while_it_was_deferred_never_reaches_the_scheduler() -> None:
    gate = Gate()
    with opened(on_step=gate) as session, ThreadPoolExecutor(1) as pool:
        session.submit("before", [1], max_tokens=5)
        gate.wait_until_entered()
        seen = pool.submit(
            session.engine.call,
            lambda runner, scheduler: (list(runner.trace.request_ids), scheduler.num_unfinished),
            drain=True,
        )
        wait_for(lambda: len(session.engine._inbox) == 1)
        dropped, kept = session.submit_together(["dropped", "kept"])
        session.engine.abort("dropped")
        gate.open()
        assert seen.result(PATIENCE) == (["before"], 0), "nobody gets past a call that drains"
        session.finish(dropped)
        session.finish(kept)
        # The engine lives, and counts no request that it doesn't have.
        assert session.engine.call(lambda _, scheduler: scheduler.num_unfinished) == 0
        session.finish(session.submit("after", [1]))
        assert session.runner.trace.request_ids == ["before", "kept", "after"]
    assert (dropped.finish_reason, dropped.num_output_tokens) == ("abort", 0)
    assert kept.token_ids == expected(kept)


def test_an_abort_does_not_reach_a_later_request_of_the_same_id() -> None:
    gate = Gate()
    with opened(on_step=gate) as session:
        session.submit("before", [1], max_tokens=2)
        gate.wait_until_entered()
        session.engine.abort("x")  # of nobody as yet; the engine's thread is held in a step
        later = session.submit("x", [2], max_tokens=3)
        gate.open()
        session.finish(later)
    assert later.finish_reason == "length"
    assert later.token_ids == expected(later)


def test_a_call_that_drains_is_answered_when_the_engine_dies_before() -> None:
    gate = Gate()

    def on_step(step: int) -> None:
        gate(step)
        if step == 4:
            raise ValueError("the device is on fire")

    session = Opened(on_step=on_step)
    session.submit("x", [1], max_tokens=50)
    gate.wait_until_entered()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(session.engine.call, lambda runner, scheduler: None, drain=True)]
        wait_for(lambda: len(session.engine._inbox) == 1)
        calls.append(pool.submit(session.engine.call, lambda runner, scheduler: None))
        wait_for(lambda: len(session.engine._inbox) == 2)
        gate.open()  # both are deferred during four steps, then the fifth fails
        for call in calls:
            with pytest.raises(EngineDeadError, match="on fire"):
                call.result(PATIENCE)
    session.engine.shutdown()


class Unreadable:
    """A step under way whose result can't be had."""

    def result(self) -> StepOutput:
        raise ValueError("the device is on fire")


def test_an_error_while_a_call_is_executed_answers_the_call() -> None:
    gate = Gate()
    session = Opened(max_steps_in_flight=2, on_step=gate)
    sample_tokens = session.runner.sample_tokens

    def unreadable(grammar_output: GrammarOutput | None = None) -> PendingOutput:
        sample_tokens(grammar_output)
        return Unreadable()

    session.runner.sample_tokens = unreadable  # type: ignore[method-assign]
    request = session.submit("x", [1], max_tokens=50)
    gate.wait_until_entered()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(session.engine.call, lambda runner, scheduler: None)
        wait_for(lambda: len(session.engine._inbox) == 1)
        gate.open()  # the first step stays under way, so that the call has to read it
        with pytest.raises(EngineDeadError, match="on fire"):
            call.result(PATIENCE)
    assert session.next_event(request) is None
    session.engine.shutdown()


def test_no_step_is_under_way_during_a_call() -> None:
    gate = Gate()
    with opened(max_steps_in_flight=2, on_step=gate) as session, ThreadPoolExecutor(1) as pool:
        request = session.submit("x", [1], max_tokens=9)
        gate.wait_until_entered()
        call = pool.submit(session.engine.call, lambda runner, _: len(runner.in_flight))
        wait_for(lambda: len(session.engine._inbox) == 1)
        gate.open()
        assert call.result(PATIENCE) == 0
        session.finish(request)
    assert request.token_ids == expected(request)


def test_requests_of_which_none_can_run_end_the_engine() -> None:
    session = Opened()
    request = session.submit("too long", [1] * 161)  # 40 blocks of 4 tokens hold 160
    assert session.next_event(request) is None
    assert "1 requests are unfinished and none can run" in str(session.engine.dead_error())
    session.engine.shutdown()


def test_nothing_is_queued_of_a_submission_with_an_id_in_use() -> None:
    gate = Gate()
    with opened(on_step=gate) as session:
        first = session.submit("x", [1])
        gate.wait_until_entered()
        with pytest.raises(InvalidRequestError, match="'x' is in use"):
            session.submit_together(["y", "x"])
        gate.open()
        session.finish(first)
        session.finish(session.submit("y", [1]))
        assert session.runner.trace.request_ids == ["x", "y"]


def test_a_streaming_request_has_news_of_each_token() -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=4)
    events = SimpleQueue[Event]()
    request = Request("x", [1], params, seed=0, limit=5, sink=events.put, streaming=True)
    with opened() as session:
        session.engine.submit([request])
        news = [events.get(timeout=PATIENCE) for _ in range(4)]
        session.finish(session.submit("x", [1]))  # the last news set the id free
    assert events.empty()
    assert [each.finish_reason for each in news if each] == [None, None, None, "length"]
    assert [[*each.token_ids] for each in news if each] == [[token] for token in expected(request)[1:]]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_sink_that_raises_ends_its_own_request_only(
    streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("Event loop is closed")

    with opened() as session:
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=None)
        request = Request("broken", [2], params, seed=0, limit=30, sink=broken, streaming=streaming)
        session.engine.submit([request])
        other = session.submit("other", [1], max_tokens=40)
        session.finish(other)
        assert session.engine.call(lambda _, scheduler: scheduler.num_unfinished) == 0
        session.finish(session.submit("broken", [1]))  # its id is free again
    assert other.token_ids == expected(other)
    assert "the sink of request broken failed" in caplog.text
    last = calls[-1]
    assert last is not None
    if streaming:
        assert last.finish_reason == "abort"
        assert request.num_output_tokens < 5
    else:
        assert last.finish_reason == "length"


def test_everybody_hears_of_the_end_though_a_sink_raises() -> None:
    gate = Gate()
    session = Opened(on_step=gate)

    def broken(event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    params = SamplingParams(max_tokens=None)
    session.engine.submit([Request("broken", [2], params, seed=0, limit=90, sink=broken)])
    request = session.submit("x", [1], max_tokens=None)
    gate.wait_until_entered()
    stopper = threading.Thread(target=session.engine.shutdown)
    stopper.start()
    wait_for(lambda: session.engine._end is not None)
    gate.open()
    assert session.next_event(request) is None
    stopper.join(PATIENCE)


def test_an_error_in_a_call_is_the_callers_alone() -> None:
    with opened() as session:
        with pytest.raises(ZeroDivisionError):
            session.engine.call(lambda runner, scheduler: 1 / 0)
        session.finish(session.submit("x", [1]))


def test_collections_pass_over_what_was_there_at_the_start() -> None:
    gc.unfreeze()
    before = len(gc.get_objects())
    opened = Opened()
    opened.engine.wait_until_ready()
    assert len(gc.get_objects()) < before / 10
    opened.engine.shutdown()
    assert gc.get_freeze_count() == 0
    assert len(gc.get_objects()) > before / 2
