"""`LLM.stream` for several prompts: one iterator, whose items are those of each prompt by itself."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dodona.runners.errors import EngineDeadError, InvalidRequestError
from dodona.runners.llm import LLM
from dodona.runners.outputs import RequestOutput
from dodona.runners.sampling.params import SamplingParams
from tests.support.fake_llm import GREEDY, Watched, assert_soon, fake_llm, no_engine_thread, solo

FOREVER = GREEDY.replace(max_tokens=None)
SLOW = {"on_step": lambda _: time.sleep(0.002)}


def num_unfinished(llm: LLM) -> int:
    return llm._client.call(lambda _, scheduler: scheduler.num_unfinished)


def tokens_by_id(outputs: Iterable[RequestOutput]) -> dict[str, dict[int, list[int]]]:
    """Tokens by request id and sequence. Checks that each request has one last item, and is finished then."""
    found: dict[str, dict[int, list[int]]] = {}
    finished: set[str] = set()
    ended: set[tuple[str, int]] = set()
    for output in outputs:
        assert output.request_id not in finished
        sequences = found.setdefault(output.request_id, {})
        for news in output.outputs:
            assert (output.request_id, news.index) not in ended
            sequences.setdefault(news.index, []).extend(news.token_ids)
            if news.finished:
                ended.add((output.request_id, news.index))
        if output.finished:
            assert all((output.request_id, index) in ended for index in sequences)
            finished.add(output.request_id)
    assert finished == set(found)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_streamed_together_is_what_generate_gives(model_dir: Path, seed: int) -> None:
    rng = random.Random(seed)
    prompts = [[rng.randrange(1, 97) for _ in range(rng.randint(1, 30))] for _ in range(rng.randint(2, 20))]
    params = [
        SamplingParams(
            n=rng.choice([1, 1, 3]),
            seed=rng.choice([None, rng.randrange(1000)]),
            max_tokens=rng.randint(1, 20),
            ignore_eos=rng.random() < 0.5,
            stop_token_ids=rng.choice([[], [1, 2, 3, 4, 5]]),
            logprobs=rng.choice([None, 2]),
        )
        for _ in prompts
    ]
    runner = {"max_steps_in_flight": rng.choice([1, 2]), "num_speculative_tokens": rng.choice([0, 3])}
    few_blocks: dict[str, Any] = {"num_gpu_blocks_override": rng.choice([None, 16])}  # some are preempted
    with fake_llm(model_dir, runner, seed=seed, **few_blocks) as llm:
        expected = llm.generate(prompts, params, use_tqdm=False)
    with fake_llm(model_dir, runner, seed=seed, **few_blocks) as llm:
        stream = llm.stream(prompts, params)
        outputs = list(stream)
        assert num_unfinished(llm) == 0
    found = tokens_by_id(outputs)
    assert set(found) == set(stream.request_ids)
    for request_id, prompt, whole in zip(stream.request_ids, prompts, expected, strict=True):
        assert found[request_id] == {s.index: s.token_ids for s in whole.outputs}
        mine = [output for output in outputs if output.request_id == request_id]
        assert all(output.prompt_token_ids == prompt for output in mine)
        for sequence in whole.outputs:
            pieces = [news for output in mine for news in output.outputs if news.index == sequence.index]
            assert pieces[-1].finish_reason == sequence.finish_reason
            assert [p for news in pieces for p in news.logprobs or ()] == (sequence.logprobs or [])


def test_items_come_while_others_are_generated(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        stream = llm.stream([[1], [2], [3]], GREEDY)
        ids = [output.request_id for output in stream]
    # Three rows fit in each step, so that no request is a whole step behind another.
    assert [sorted(ids[i : i + 3]) for i in range(0, 30, 3)] == [sorted(stream.request_ids)] * 10


def test_a_prompt_that_cannot_be_served_comes_first_and_the_others_go_on(model_dir: Path) -> None:
    prompts: list[Any] = [[1] * 20, [], [2, 3], "text", [1] * 64, 7]
    with fake_llm(model_dir) as llm:
        stream = llm.stream(prompts, GREEDY)
        outputs = list(stream)
    found = tokens_by_id(outputs)
    ids = stream.request_ids
    assert len(set(ids)) == 6
    bad = {ids[1]: "empty", ids[3]: "tokenizer", ids[4]: "max_model_len", ids[5]: "got int"}
    assert [output.request_id for output in outputs[:4]] == list(bad)
    for output, reason in zip(outputs, bad.values(), strict=False):
        assert output.finished
        assert output.outputs[0].finish_reason == "error"
        assert output.error is not None
        assert reason in output.error
    assert found[ids[0]] == {0: solo([1] * 20)}
    assert found[ids[2]] == {0: solo([2, 3])}
    assert all(output.error is None for output in outputs[4:])


def test_only_prompts_that_cannot_be_served(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        assert [output.error is None for output in llm.stream([[], [97]], GREEDY)] == [False, False]


@pytest.mark.parametrize("prompt", [[1, 2], (1, 2), {"prompt_token_ids": [1, 2]}, Watched([1, 2], int)])
def test_one_prompt_in_its_forms(model_dir: Path, prompt: Any) -> None:
    with fake_llm(model_dir) as llm:
        stream = llm.stream(prompt, GREEDY, request_id="mine")
        assert (stream.request_id, stream.request_ids) == ("mine", ("mine",))
        assert tokens_by_id(stream) == {"mine": {0: solo([1, 2])}}
        several = llm.stream([prompt], GREEDY)
        assert tokens_by_id(several) == {several.request_id: {0: solo([1, 2])}}


@pytest.mark.parametrize("prompt", [[], "text", None, 7, [1, "x"], {}, {"prompt_token_ids": []}])
def test_one_prompt_that_cannot_be_served_is_refused_at_once(model_dir: Path, prompt: Any) -> None:
    with fake_llm(model_dir) as llm, pytest.raises(InvalidRequestError):
        llm.stream(prompt, GREEDY)


def test_parameters_for_all_or_for_each(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        stream = llm.stream([[1], [1]], [GREEDY.replace(max_tokens=2), GREEDY.replace(max_tokens=3)])
        found = tokens_by_id(stream)
        assert [len(found[request_id][0]) for request_id in stream.request_ids] == [2, 3]
        with pytest.raises(InvalidRequestError, match="1 sampling_params for 2 prompts"):
            llm.stream([[1], [2]], [GREEDY])


def test_request_ids_are_the_callers(model_dir: Path) -> None:
    with fake_llm(model_dir, SLOW) as llm:
        stream = llm.stream([[1], [], [2]], FOREVER, request_id=["b", "c", "a"])
        assert stream.request_ids == ("b", "c", "a")
        assert next(stream).request_id == "c"
        next(stream)
        llm.abort("a")
        for output in stream:
            if output.finished:
                break
        assert (output.request_id, output.outputs[0].finish_reason) == ("a", "abort")
        rest = list(stream)
        assert {output.request_id for output in rest} == {"b"}
        assert rest[-1].outputs[0].finish_reason == "length"
        for ids in (["a"], ["a", "a"], "a", ["a", 1]):
            with pytest.raises(InvalidRequestError, match=r"request.id"):
                llm.stream([[1], [2]], FOREVER, request_id=ids)  # type: ignore[arg-type]


def test_an_id_in_use_ends_the_new_stream_and_not_the_old_one(model_dir: Path) -> None:
    with fake_llm(model_dir, SLOW) as llm:
        old = llm.stream([1], GREEDY, request_id="mine")
        with pytest.raises(InvalidRequestError, match="in use"):
            llm.stream([2], GREEDY, request_id="mine")
        with pytest.raises(InvalidRequestError, match="in use"):
            # The first fills a step, and has begun when the second is refused.
            llm.stream([[3] * 20, [2]], FOREVER, request_id=["other", "mine"])
        gc.collect()
        outputs = list(old)
        assert outputs[-1].outputs[0].finish_reason == "length"
        assert tokens_by_id(outputs) == {"mine": {0: solo([1])}}
        assert num_unfinished(llm) == 0


@pytest.mark.parametrize("way", ["close", "with", "drop"])
def test_the_end_of_a_stream_aborts_all_that_are_unfinished(model_dir: Path, way: str) -> None:
    params = [GREEDY.replace(max_tokens=1), FOREVER, FOREVER.replace(n=2, temperature=1.0), *[FOREVER] * 20]
    prompts = [[index + 1] * 3 for index in range(len(params))]
    with fake_llm(model_dir, SLOW) as llm:
        other = llm.stream([[90], [91]], GREEDY)
        stream = llm.stream(prompts, params)
        for _ in range(8):
            next(stream)
        if way == "close":
            stream.close()
            assert list(stream) == []
        elif way == "with":
            with stream:
                next(stream)
            assert list(stream) == []
        else:
            del stream
            gc.collect()
        found = tokens_by_id(other)
        assert [found[request_id][0] for request_id in other.request_ids] == [solo([90]), solo([91])]
        assert num_unfinished(llm) == 0
        assert llm.generate([5], GREEDY)[0].outputs[0].token_ids == solo([5])


def test_closing_before_the_refused_are_read(model_dir: Path) -> None:
    with fake_llm(model_dir, SLOW) as llm:
        stream = llm.stream([[], [1]], FOREVER)
        stream.close()
        assert list(stream) == []
        assert num_unfinished(llm) == 0


def test_a_failure_among_the_prompts_aborts_those_that_began(model_dir: Path) -> None:
    def fail() -> None:
        raise RuntimeError("not readable")

    with fake_llm(model_dir, SLOW) as llm:
        with pytest.raises(RuntimeError, match="not readable"):
            llm.stream([[1] * 20, Watched([3], fail)], FOREVER)
        assert num_unfinished(llm) == 0


def test_the_engine_begins_while_later_prompts_are_looked_at(model_dir: Path) -> None:
    stepped = threading.Event()
    with fake_llm(model_dir, {"on_step": lambda _: stepped.set()}) as llm:
        stepped.clear()  # warm-up has set it
        stream = llm.stream([[1] * 10, [2] * 10, Watched([3], lambda: assert_soon(stepped))], GREEDY)
        found = tokens_by_id(stream)
    assert [found[i][0] for i in stream.request_ids] == [solo(p) for p in ([1] * 10, [2] * 10, [3])]


def test_the_engines_death_comes_after_what_was_delivered(model_dir: Path) -> None:
    die = threading.Event()

    def on_step(_: int) -> None:
        if die.is_set():
            raise ValueError("the device is on fire")
        time.sleep(0.002)

    llm = fake_llm(model_dir, {"on_step": on_step})
    stream = llm.stream([[1], [2], [3] * 20], FOREVER)
    outputs = [next(stream) for _ in range(4)]
    die.set()
    with pytest.raises(EngineDeadError, match="on fire") as caught:
        outputs += stream  # takes what comes before the error, and raises it
    assert isinstance(caught.value.__cause__, ValueError)
    assert not any(output.finished for output in outputs)
    assert list(stream) == []
    with pytest.raises(EngineDeadError, match="on fire"):
        llm.stream([[1], [2]], GREEDY)
    llm.shutdown()
    assert no_engine_thread()


def test_ctrl_c_while_waiting_ends_the_engine(model_dir: Path) -> None:
    waiting = threading.Event()
    llm = fake_llm(model_dir, {"on_step": lambda _: time.sleep(0.5 if waiting.is_set() else 0)})
    waiting.set()
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            next(llm.stream([[1], [2]], FOREVER))
    finally:
        signal.signal(signal.SIGINT, previous)
    with pytest.raises(EngineDeadError):
        llm.generate([1])
    assert no_engine_thread()


def test_a_stream_keeps_its_engine_alive(model_dir: Path) -> None:
    stream = fake_llm(model_dir).stream([[1], [2]], GREEDY)
    gc.collect()
    found = tokens_by_id(stream)
    assert [found[request_id][0] for request_id in stream.request_ids] == [solo([1]), solo([2])]
    del stream
    gc.collect()
    assert no_engine_thread()


def test_text_of_several(model_dir: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(model_dir)
    config = (model_dir / "config.json").read_text().replace('"vocab_size": 97', '"vocab_size": 300')
    (model_dir / "config.json").write_text(config)
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    with fake_llm(model_dir, {"vocab_size": 300}) as llm:
        expected = llm.generate(["one two", "three"], params)
        stream = llm.stream(["one two", "three"], params)
        text = dict.fromkeys(stream.request_ids, "")
        for output in stream:
            text[output.request_id] += output.outputs[0].text
    assert list(text.values()) == [output.outputs[0].text for output in expected]
    assert all(text.values())
