"""What callers may do wrong: each gets a named error, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from dodona.oracle.systems.own.pooler import PoolingSettings
from dodona.runners.chat import chat_prompts
from dodona.runners.distributed.process import worker_processes
from dodona.runners.engine.assembler import OutputAssembler
from dodona.runners.engine.prompts import parse_prompt
from dodona.runners.errors import EngineDeadError, EngineThreadError, InvalidRequestError
from dodona.runners.llm import LLM
from dodona.runners.pooling.params import PoolingParams
from dodona.runners.sampling.params import SamplingParams
from tests.engine.test_admission import admission
from tests.support.fake_runner import FakeRunner, fake_verdict

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SLOW = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)


def fake_llm(model_dir: Path, **runner: Any) -> LLM:
    sizes = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return LLM.from_verdict(fake_verdict(str(model_dir), partial(FakeRunner, **runner), **sizes))


# --- fork


def in_child(act: Any) -> str:
    """What `act` returns in a forked process; fails where that hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    for _ in range(1200):
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    with os.fdopen(reading) as answer:
        return answer.read()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_is_told_that_the_engine_is_not_its_own(model_dir: Path) -> None:
    with fake_llm(model_dir, on_step=lambda _: time.sleep(0.05)) as llm:
        stream = llm.stream([1, 2], SLOW)
        next(stream)
        said = "EngineDeadError: the engine has ended: RuntimeError: the engine belongs to another process"
        for act in (
            lambda: str(llm.generate([[1, 2]], GREEDY)),
            lambda: str(next(iter(llm.stream([1, 2], GREEDY)))),
            lambda: str(llm.collective_rpc("reload_weights")),
            lambda: str([piece.finished for piece in stream]),
        ):
            assert in_child(act).startswith(said)
        assert in_child(lambda: str(llm.shutdown())) == "None"
        stream.close()
        assert len(llm.generate([[1, 2]], GREEDY)[0].outputs[0].token_ids) == 6


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_engines_lock(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        lock = llm._client._engine._wake
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with lock:
                held.set()
                release.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        try:
            assert "another process" in in_child(lambda: str(llm.generate([[1]], GREEDY)))
        finally:
            release.set()
            holder.join()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_while_other_threads_hold_all_locks(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        client = llm._client
        with client.control._lock, client.admission._grammars._lock:
            for act in (
                lambda: llm.generate(
                    [[1]], GREEDY.replace(ignore_eos=False, structured_outputs={"regex": "a"})
                ),
                lambda: llm.chat([{"role": "user", "content": "a"}]),
                lambda: llm.sleep(),
                lambda: llm.wake_up(),
                lambda: llm.reload_weights(),
                lambda: llm.embed("a"),
                lambda: llm.list_loras(),
            ):
                assert in_child(lambda act=act: str(act())).startswith("EngineDeadError")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_holds_no_worker(tmp_path: Path) -> None:
    with worker_processes(1, tmp_path) as launched:
        (worker,) = launched.workers
        try:
            files = worker.connection.fileno(), worker._life  # type: ignore[attr-defined]

            def stat() -> str:
                found = []
                for file in files:
                    with contextlib.suppress(OSError):
                        found.append(os.fstat(file))
                return f"{len(found)} open"

            assert in_child(stat) == "0 open"
            assert stat() == "2 open"
        finally:
            worker.end(0.0)


# --- the engine's own thread


def test_calls_from_the_engines_thread_are_refused(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:

        def inside(runner: Any, scheduler: Any) -> Any:
            with pytest.raises(EngineThreadError, match="own thread"):
                llm.generate([[1]], GREEDY)
            with pytest.raises(EngineThreadError, match="own thread"):
                llm.collective_rpc("reload_weights")
            return "done"

        assert llm._client.call(inside) == "done"
        assert llm.generate([[1]], GREEDY)[0].finished


# --- request ids


def test_nobody_can_take_another_requests_automatic_id(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        streams = [llm.stream([1, 2], SLOW, request_id=str(number)) for number in range(3)]
        outputs = llm.generate([[1], [2], [3]], GREEDY)
        assert all(output.error is None for output in outputs)
        assert len({output.request_id for output in outputs}) == 3
        for stream in streams:
            stream.close()
        for taken in (outputs[0].request_id, "auto-1", "__dodona_x"):
            with pytest.raises(InvalidRequestError, match="reserved"):
                llm.stream([1], GREEDY, request_id=taken)


@pytest.mark.parametrize("given", [5, b"x", None, "", "x" * 257, ["a", 5], ("a", "a"), ["a"]])
def test_what_is_no_request_id(model_dir: Path, given: Any) -> None:
    if given is None:
        with pytest.raises(InvalidRequestError, match="request_id must be text"):
            admission().admit(parse_prompt([1]), GREEDY, 5)  # type: ignore[arg-type]
        return
    with fake_llm(model_dir) as llm, pytest.raises(InvalidRequestError, match=r"request.id"):
        llm.stream([[1], [2]] if isinstance(given, (list, tuple)) else [1], GREEDY, request_id=given)


# --- tokenizers, templates, parameters


@pytest.mark.parametrize("bad", ["bad \udcff", "\ud800"])
def test_a_text_that_the_tokenizer_refuses_fails_alone(tokenizer: Any, bad: str) -> None:
    admitting = admission(tokenizer)
    with pytest.raises(InvalidRequestError, match="the prompt: the tokenizer can't take"):
        admitting.admit(parse_prompt(bad), GREEDY)
    with pytest.raises(InvalidRequestError, match="bad_words: the tokenizer can't take"):
        admitting.admit(parse_prompt("ok"), GREEDY.replace(bad_words=[bad]))
    assert admitting.admit(parse_prompt("ok"), GREEDY)


def test_a_text_that_is_certainly_too_long_is_not_tokenized(tokenizer: Any) -> None:
    admitting = admission(tokenizer)
    calls: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            calls.append(len(text))
            return tokenizer(text, **options)

    admitting.tokenizer = Counting()
    most = admitting.max_model_len * admitting.longest_token * 4
    for length in (most + 1, 50_000_000):
        with pytest.raises(InvalidRequestError, match=f"{length} characters, more than {most}"):
            admitting.admit(parse_prompt("x" * length), GREEDY)
    assert calls == []
    longest = max(tokenizer.get_vocab(), key=len)
    assert len(longest) == admitting.longest_token


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "min_p", "top_p", "presence_penalty"])
def test_a_number_that_no_float_holds_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be a finite number"):
        SamplingParams(**{name: 10**400})


def test_messages_do_not_repeat_what_is_long() -> None:
    for given in ({"stop": [b"x" * 10_000]}, {"logit_bias": {"x" * 10_000: 1}}, {"bad_words": "x" * 10_000}):
        with pytest.raises(InvalidRequestError) as caught:
            SamplingParams(**given)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 400


def test_an_ended_engine_says_so_to_all(model_dir: Path) -> None:
    llm = fake_llm(model_dir)
    llm.shutdown()
    with pytest.raises(EngineDeadError):
        llm.generate([[1]], GREEDY)


# --- forms of the output

DEEP: dict[str, Any] = {"type": "string"}
for _ in range(100):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"json": DEEP}, "nests deeper"),
        ({"json": {"properties": {str(i): True for i in range(10_000)}}}, "10000 entries"),
        ({"json": '{"a": 1, "a": 2}'}, "given twice"),
        ({"json": "x" * 300_000}, "300000 characters"),
        ({"regex": "x" * 300_000}, "300000 characters"),
        ({"choice": [str(i) for i in range(2_000)]}, "more than 1000 texts"),
    ],
)
def test_forms_are_bounded_before_they_are_compiled(form: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        SamplingParams(structured_outputs=form)


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_lists_of_texts_are_bounded(name: str) -> None:
    for texts in ([str(number) for number in range(1_001)], ["x" * 70_000]):
        with pytest.raises(InvalidRequestError, match=f"{name} holds more than 1000 strings"):
            SamplingParams(**{name: texts})


def test_what_all_parts_of_a_schema_take_is_bounded_and_one_large_object_is_compiled() -> None:
    large = {"type": "object", "properties": {str(i): {"type": "integer"} for i in range(1_000)}}
    assert SamplingParams(structured_outputs={"json": large})
    with pytest.raises(InvalidRequestError, match="too long to compile"):
        SamplingParams(structured_outputs={"json": {"properties": {"a": large, "b": large, "c": large}}})


def test_a_text_that_is_cut_by_the_tokenizer_is_bounded(tokenizer: Any) -> None:
    cut = PoolingParams(truncate_prompt_tokens=4)
    settings = PoolingSettings("embed", ("LAST",), (), None, None, (), "identity", True, None, False)
    admitting = admission(tokenizer, vocab_size=400)
    admitted = admitting.admit_pooling(parse_prompt("one two " * 1_000), None, cut, settings, print)
    assert admitted.num_prompt_tokens == 4
    with pytest.raises(InvalidRequestError, match="5000000 characters, more than 1048576"):
        admitting.admit_pooling(parse_prompt("x" * 5_000_000), None, cut, settings, print)


def test_a_conversation_that_is_certainly_too_long_is_not_tokenized(tokenizer: Any) -> None:
    check = admission(tokenizer).check_length
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(InvalidRequestError, match="1000000 characters, more than"):
        chat_prompts(
            tokenizer,
            [{"role": "user", "content": "x" * 1_000_000}],
            chat_template=template,
            check_length=check,
        )


def test_a_template_that_prints_without_end_is_stopped(tokenizer: Any) -> None:
    text = "{{ messages[0].content }}"
    template = f"{{% for a in range(9999) %}}{{% for b in range(9999) %}}{text}{{% endfor %}}{{% endfor %}}"
    for content in ("x" * 100_000, "y" * 200_000):
        with pytest.raises(InvalidRequestError, match="prints more than 16777216 characters"):
            chat_prompts(tokenizer, [{"role": "user", "content": content}], chat_template=template)
    (prompt,) = chat_prompts(tokenizer, [{"role": "user", "content": "one"}], chat_template=text)
    assert prompt["prompt"] == "one"  # type: ignore[call-overload, index]


def test_a_template_that_takes_long_to_compile_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidRequestError, match="has 700000 characters, more than 131072"):
        chat_prompts(tokenizer, [{"role": "user", "content": "x"}], chat_template="{{ a }}" * 100_000)


def test_a_decoder_that_panics_ends_its_own_request(tokenizer: Any) -> None:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.decoder = decoders.Strip("x", 0, 5)
    admitting = admission(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>"), vocab_size=400
    )
    ((good,), (bad,)) = (tokenizer(text)["input_ids"] for text in "yx")

    (stopping,) = admitting.admit(parse_prompt([good]), GREEDY.replace(stop=["zz"]))
    stopping.append(good)
    assert stopping.finish_reason is None
    stopping.append(bad)
    assert stopping.finish_reason == "error"
    assert "the tokenizer can't decode" in (stopping.error or "")

    plain = admitting.admit(parse_prompt([good]), GREEDY)
    assembler = OutputAssembler(None, plain, admitting.detokenizer)
    plain[0].append(bad)
    plain[0].abort()
    output = assembler.output([assembler.add(plain[0].take_progress())])
    assert output.outputs[0].finish_reason == "error"
    assert "the tokenizer can't decode" in (output.error or "")
    with pytest.raises(InvalidRequestError, match="can't decode"):
        admitting.admit(parse_prompt([bad]), GREEDY.replace(stop=["zz"]))
