"""The engine's client by itself: what a server stands on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from dodona.runners.client import EngineClient, Submission
from dodona.runners.engine.events import Event, Progress
from dodona.runners.engine.request import Request
from dodona.runners.errors import EngineDeadError, InvalidRequestError
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from tests.support.fake_llm import GREEDY, PATIENCE, fake_llm, no_engine_thread, solo, verdict_for


def start(model_dir: Path, **runner: Any) -> EngineClient:
    return EngineClient(verdict_for(model_dir, runner))  # type: ignore[arg-type]


def read(events: SimpleQueue[Event], submission: Submission) -> dict[int, list[Progress]]:
    """All progress by the prompt's index, until all prompts are finished."""
    index_of = {assembler.request_id: index for index, assembler in submission.admitted.items()}
    found: dict[int, list[Progress]] = {index: [] for index in submission.admitted}
    while not all(assembler.finished for assembler in submission.admitted.values()):
        progress = events.get(timeout=PATIENCE)
        assert progress is not None
        index = index_of[progress.request_id]
        submission.admitted[index].add(progress)
        found[index].append(progress)
    return found


def test_a_sink_may_call_back_into_an_event_loop(model_dir: Path) -> None:
    """As an asynchronous server does: no thread waits, and the loop takes each piece in its own thread."""
    client = start(model_dir, max_steps_in_flight=2)
    threads: set[str] = set()

    async def serve(prompt: list[int], request_id: str) -> list[int]:
        events: asyncio.Queue[Event] = asyncio.Queue()

        def take(event: Event) -> None:
            threads.add(threading.current_thread().name)
            events.put_nowait(event)

        sink = partial(asyncio.get_running_loop().call_soon_threadsafe, take)
        submission = client.submit([prompt], GREEDY, sink, request_ids=[request_id], streaming=True)
        assembler = submission.admitted[0]
        token_ids: list[int] = []
        while not assembler.finished:
            progress = await asyncio.wait_for(events.get(), PATIENCE)
            assert progress is not None
            output = assembler.output([assembler.add(progress)])
            assert output.request_id == request_id
            token_ids += output.outputs[0].token_ids
        return token_ids

    async def serve_all() -> list[list[int]]:
        return await asyncio.gather(*(serve([1 + i, 2], f"request-{i}") for i in range(6)))

    assert asyncio.run(serve_all()) == [solo([1 + i, 2]) for i in range(6)]
    assert threads == {threading.current_thread().name}
    client.shutdown()


def test_prompts_are_admitted_or_refused_by_index(model_dir: Path) -> None:
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    submission = client.submit([[1], [], "text", [2]], GREEDY, events.put)
    assert set(submission.admitted) == {0, 3}
    assert {index: reason.split(";")[0] for index, reason in submission.refused.items()} == {
        1: "the prompt is empty",
        2: "a text prompt needs a tokenizer, and there is none (no tokenizer files, or "
        "skip_tokenizer_init=True)",
    }
    found = read(events, submission)
    assert [list(p.token_ids) for p in found[0] + found[3]] == [solo([1]), solo([2])]
    client.shutdown()


def test_each_prompt_gets_its_parameters_and_its_id(model_dir: Path) -> None:
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    params = [GREEDY.replace(max_tokens=2), GREEDY.replace(max_tokens=3)]
    submission = client.submit([[1], [1]], params, events.put, request_ids=["a", "b"])
    assert [assembler.request_id for assembler in submission.admitted.values()] == ["a", "b"]
    found = read(events, submission)
    assert [len(found[index][0].token_ids) for index in (0, 1)] == [2, 3]
    with pytest.raises(InvalidRequestError, match="1 sampling_params for 2 prompts"):
        client.submit([[1], [1]], params[:1], events.put)
    submission = client.submit([[1]], None, events.put)
    (progress,) = read(events, submission)[0]
    assert len(progress.token_ids) <= client.default_sampling_params.max_tokens
    client.shutdown()


def test_a_submission_that_fails_leaves_nothing_behind(model_dir: Path) -> None:
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    forever = GREEDY.replace(max_tokens=None)
    client.submit([[1]], GREEDY, SimpleQueue[Event]().put, request_ids=["mine"])
    with pytest.raises(InvalidRequestError, match="in use"):
        # The first fills a step, and has begun when the second is refused.
        client.submit([[3] * 20, [2]], forever, events.put, request_ids=["other", "mine"])
    progress = events.get(timeout=PATIENCE)
    assert progress is not None
    assert (progress.request_id, progress.finish_reason) == ("other", "abort")
    client.call(lambda runner, scheduler: None, drain=True)
    assert client.call(lambda _, scheduler: scheduler.num_unfinished) == 0
    client.shutdown()


def test_progress_is_a_plain_value(model_dir: Path) -> None:
    """Nothing in it is shared with the engine's thread."""
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    params = GREEDY.replace(logprobs=1, prompt_logprobs=1)
    submission = client.submit([[1, 2, 3]], params, events.put, streaming=True)
    (pieces,) = read(events, submission).values()
    assert [piece.token_ids for piece in pieces] == [(token,) for token in solo([1, 2, 3])]
    assert [len(piece.logprobs) for piece in pieces] == [1] * len(pieces)
    assert [piece.prompt_logprobs is not None for piece in pieces] == [True, *[False] * (len(pieces) - 1)]
    assert len(pieces[0].prompt_logprobs or ()) == 2
    with pytest.raises(AttributeError):
        pieces[0].token_ids = ()  # type: ignore[misc]

    def check(value: object) -> None:
        assert value is None or isinstance(value, (str, int, tuple, TokenLogprobs)), value
        if isinstance(value, tuple):
            for each in value:
                check(each)

    for piece in pieces:
        check(piece)
    client.shutdown()


def test_every_sequence_of_a_prompt_has_progress_of_its_own(model_dir: Path) -> None:
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True, prompt_logprobs=0)
    submission = client.submit([[1, 2, 3]], params, events.put, request_ids=["mine"])
    (pieces,) = read(events, submission).values()
    by_index = {piece.sequence_index: piece for piece in pieces}
    assert sorted(by_index) == [0, 1, 2]
    assert {piece.request_id for piece in pieces} == {"mine"}
    assert [by_index[i].prompt_logprobs is not None for i in range(3)] == [True, False, False]
    assert [list(by_index[i].token_ids) for i in range(3)] == [
        solo([1, 2, 3], params, seed=5 + i) for i in range(3)
    ]
    client.shutdown()


def test_an_aborted_request_brings_what_it_has() -> None:
    request = Request("x", [1, 2], SamplingParams(prompt_logprobs=1, logprobs=0), seed=0, limit=9)
    request.abort()
    progress = request.take_progress()
    assert (progress.token_ids, progress.logprobs, progress.prompt_logprobs) == ((), (), ())
    assert (progress.num_cached_tokens, progress.finish_reason) == (0, "abort")


def test_sinks_hear_of_the_engines_end(model_dir: Path) -> None:
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    entered, resume = threading.Event(), threading.Event()

    def wait(runner: Any, scheduler: Any) -> None:
        entered.set()
        assert resume.wait(PATIENCE)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(client.call, wait)
        assert entered.wait(PATIENCE)
        client.submit([[1], [2]], GREEDY, events.put)
        ended = pool.submit(client.shutdown, ValueError("the power is off"))
        deadline = time.monotonic() + PATIENCE
        while client._engine._end is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert client._engine._end is not None
        resume.set()
        ended.result(PATIENCE)
    assert [events.get(timeout=PATIENCE) for _ in range(2)] == [None, None]
    assert "the power is off" in str(client.dead_error())
    with pytest.raises(EngineDeadError, match="the power is off"):
        client.submit([[1]], GREEDY, events.put)


def test_a_client_that_is_dropped_ends_its_engine(model_dir: Path) -> None:
    client = start(model_dir)
    events: SimpleQueue[Event] = SimpleQueue()
    read(events, client.submit([[1]], GREEDY, events.put))
    del client
    assert no_engine_thread()


def test_refusals_keep_no_model_alive(model_dir: Path) -> None:
    """Not even until the next garbage collection."""
    llm = fake_llm(model_dir)
    assert llm.generate([[], "text"])[0].error is not None
    assert next(llm.stream([[], "text"])).error is not None
    with contextlib.suppress(InvalidRequestError):
        llm.stream("text")
    del llm
    assert no_engine_thread()
