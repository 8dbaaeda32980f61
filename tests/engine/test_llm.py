"""`LLM` from the outside, with a fake runner."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dodona
from dodona.oracle.errors import ConfigError
from dodona.runners.errors import EngineDeadError, EngineSetupError, InvalidRequestError
from dodona.runners.outputs import RequestOutput
from dodona.runners.sampling.params import SamplingParams
from tests.support.child_interpreter import child_environment
from tests.support.fake_llm import GREEDY, PATIENCE, Watched, assert_soon, fake_llm, no_engine_thread, solo
from tests.support.fake_runner import context_hash, token_logprobs

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def test_outputs_come_in_the_prompts_order_and_bad_prompts_alone_fail(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        prompts = [[1] * 20, [], [2, 3], {"prompt_token_ids": [4]}, "text", [1] * 64]
        outputs = llm.generate(prompts, GREEDY)
    assert [output.error is None for output in outputs] == [True, False, True, True, False, False]
    for output, prompt in ((outputs[0], [1] * 20), (outputs[2], [2, 3]), (outputs[3], [4])):
        assert output.prompt_token_ids == prompt
        assert output.outputs[0].token_ids == solo(prompt)
        assert output.outputs[0].finish_reason == "length"
        assert output.finished
    assert outputs[1].outputs[0].finish_reason == "error"
    assert outputs[1].error is not None
    assert "empty" in outputs[1].error
    assert no_engine_thread()


def test_one_prompt_and_no_prompts(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        (output,) = llm.generate([1, 2], GREEDY)
        assert output.prompt_token_ids == [1, 2]
        assert llm.generate([], GREEDY) == []


def test_a_parameter_for_each_prompt(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        outputs = llm.generate([[1], [1]], [GREEDY.replace(max_tokens=2), GREEDY.replace(max_tokens=3)])
        assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 3]
        with pytest.raises(InvalidRequestError, match="3 sampling_params for 1 prompts"):
            llm.generate([[1]], [GREEDY] * 3)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, "greedy", 3, [GREEDY, None]])
def test_parameters_of_another_type_are_refused(model_dir: Path, params: Any) -> None:
    with fake_llm(model_dir) as llm, pytest.raises(InvalidRequestError, match="must be SamplingParams"):
        llm.generate([[1], [2]], params)


def test_the_bar_shows_before_the_first_prompt_is_done(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dodona.runners.waiting._REDRAW_AFTER", 0.01)
    with fake_llm(model_dir, {"on_step": lambda _: time.sleep(0.05)}) as llm:
        llm.generate([1, 2], GREEDY, use_tqdm=True)
    shown = [line for line in capsys.readouterr().err.split("\r") if "0/1" in line]
    assert len(shown) > 1, "the bar moves while nothing is finished"


def test_the_engine_begins_while_later_prompts_are_looked_at(model_dir: Path) -> None:
    stepped = threading.Event()
    with fake_llm(model_dir, {"on_step": lambda _: stepped.set()}) as llm:
        stepped.clear()  # warm-up has set it
        last = Watched([3], lambda: assert_soon(stepped))
        outputs = llm.generate([[1] * 10, [2] * 10, last], GREEDY)  # a step holds 16 tokens
    assert [output.outputs[0].token_ids for output in outputs] == [
        solo(prompt) for prompt in ([1] * 10, [2] * 10, [3])
    ]


def test_an_error_among_the_prompts_aborts_those_that_began(model_dir: Path) -> None:
    def fail() -> None:
        raise RuntimeError("not readable")

    forever = GREEDY.replace(max_tokens=None)
    with fake_llm(model_dir, {"on_step": lambda _: time.sleep(0.01)}) as llm:
        with pytest.raises(RuntimeError, match="not readable"):
            llm.generate([[1] * 20, Watched([3], fail)], forever)
        unfinished = llm._client.call(lambda _, scheduler: scheduler.num_unfinished)
    assert unfinished == 0


def test_several_sequences_of_a_prompt(model_dir: Path) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True)
    with fake_llm(model_dir) as llm:
        (output,) = llm.generate([1, 2, 3], params)
    assert [sequence.index for sequence in output.outputs] == [0, 1, 2]
    assert [sequence.token_ids for sequence in output.outputs] == [
        solo([1, 2, 3], params, seed=5 + index) for index in range(3)
    ]


def test_logprobs_in_vllms_shape(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        (output,) = llm.generate([1, 2, 3], GREEDY.replace(logprobs=2, prompt_logprobs=1, max_tokens=3))
    sequence = output.outputs[0]
    tokens = [1, 2, 3, *sequence.token_ids]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == 3
    assert sequence.logprobs is not None
    assert len(sequence.logprobs) == 3
    total = 0.0
    for position, entry in enumerate([*output.prompt_logprobs[1:], *sequence.logprobs], start=1):
        raw = token_logprobs(context_hash(tokens[:position]), tokens[position], 1 if position < 3 else 2, 97)
        assert next(iter(entry)) == tokens[position]
        assert entry[tokens[position]].rank == raw.rank
        assert entry[tokens[position]].logprob == raw.logprobs[0]
        assert set(entry) == set(raw.token_ids)
        assert all(value.decoded_token is None for value in entry.values())
        for rank, token in enumerate(raw.token_ids[1:], start=1):
            if token != tokens[position] and token not in raw.token_ids[1:rank]:
                assert entry[token].rank == rank
        if position >= 3:
            total += raw.logprobs[0]
    assert sequence.cumulative_logprob is not None
    assert math.isclose(sequence.cumulative_logprob, total)


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
def test_a_stream_brings_what_is_new(model_dir: Path, max_steps_in_flight: int) -> None:
    with fake_llm(model_dir, {"max_steps_in_flight": max_steps_in_flight}) as llm:
        outputs = list(llm.stream([1, 2], GREEDY.replace(logprobs=0)))
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1] * 10
    assert [token for output in outputs for token in output.outputs[0].token_ids] == solo([1, 2])
    assert [output.finished for output in outputs] == [False] * 9 + [True]
    assert all(len(output.outputs[0].logprobs or ()) == 1 for output in outputs)


def test_a_stream_that_is_closed_aborts_its_request(model_dir: Path) -> None:
    slow = {"on_step": lambda step: time.sleep(0.002)}
    with fake_llm(model_dir, slow) as llm:
        stream = llm.stream([1], GREEDY.replace(max_tokens=None))
        assert next(stream).outputs[0].token_ids == solo([1])[:1]
        stream.close()
        assert list(stream) == []
        dropped = llm.stream([2], GREEDY.replace(max_tokens=None))
        del dropped
        gc.collect()
        left = llm._client.call(lambda runner, scheduler: scheduler.num_unfinished)
        assert left == 0


def test_abort_from_elsewhere(model_dir: Path) -> None:
    slow = {"on_step": lambda step: time.sleep(0.002)}
    with fake_llm(model_dir, slow) as llm:
        stream = llm.stream([1], GREEDY.replace(max_tokens=None), request_id="mine")
        next(stream)
        llm.abort("mine")
        llm.abort("unknown")
        last = list(stream)[-1]
        assert last.finished
        assert last.outputs[0].finish_reason == "abort"


def test_a_request_that_cannot_be_streamed_is_refused_at_once(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        with pytest.raises(InvalidRequestError, match="empty"):
            llm.stream([])
        with pytest.raises(InvalidRequestError, match="reserved"):
            llm.stream([1], request_id="__dodona_warm_up")


def test_seeds_make_runs_repeatable(model_dir: Path) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)

    def run(seed: int) -> list[list[int]]:
        with fake_llm(model_dir, seed=seed) as llm:
            return [output.outputs[0].token_ids for output in llm.generate([[1], [1], [1]], params)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert len({tuple(tokens) for tokens in run(1)}) == 3


def test_callers_in_many_threads(model_dir: Path) -> None:
    def work(number: int) -> bool:
        prompts = [[1 + number, i] for i in range(6)]
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs] == [solo(prompt) for prompt in prompts]

    with fake_llm(model_dir, {"max_steps_in_flight": 2}) as llm, ThreadPoolExecutor(5) as pool:
        assert all(pool.map(work, range(5)))


def test_an_error_in_a_step_ends_all_calls(model_dir: Path) -> None:
    def on_step(step: int) -> None:
        if step == 12:
            raise ValueError("the device is on fire")

    llm = fake_llm(model_dir, {"on_step": on_step})
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(llm.generate, [[i]] * 3, GREEDY.replace(max_tokens=60)) for i in (1, 2)]
        calls.append(pool.submit(lambda: list(llm.stream([3], GREEDY.replace(max_tokens=60)))))
        for call in calls:
            with pytest.raises(EngineDeadError) as caught:
                call.result(PATIENCE)
            assert isinstance(caught.value.__cause__, ValueError)
    for use in (
        lambda: llm.generate([1]),
        lambda: llm.stream([1]),
        lambda: llm.collective_rpc("get_kv_cache_spec"),
        llm.reload_weights,
    ):
        with pytest.raises(EngineDeadError, match="the device is on fire"):
            use()
    llm.shutdown()
    assert no_engine_thread()


def test_ctrl_c_in_generate_ends_the_engine(model_dir: Path) -> None:
    llm = fake_llm(model_dir, {"on_step": lambda step: time.sleep(0.005)}, max_model_len=60)
    other = ThreadPoolExecutor(1).submit(llm.generate, [[1]] * 200, GREEDY.replace(max_tokens=50))
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[2]] * 200, GREEDY.replace(max_tokens=50))
    finally:
        signal.signal(signal.SIGINT, previous)
    with pytest.raises(EngineDeadError) as caught:
        other.result(PATIENCE)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    with pytest.raises(EngineDeadError):
        llm.generate([1])
    assert no_engine_thread()


def test_shutdown_twice_and_afterwards(model_dir: Path) -> None:
    llm = fake_llm(model_dir)
    llm.shutdown()
    llm.shutdown()
    with pytest.raises(EngineDeadError, match="the engine was shut down"):
        llm.generate([1])
    assert no_engine_thread()


def test_an_llm_that_is_dropped_ends_its_engine(model_dir: Path) -> None:
    llm = fake_llm(model_dir)
    llm.generate([1], GREEDY)
    del llm
    gc.collect()
    assert no_engine_thread()


def test_new_weights_are_used_and_old_prefixes_are_not(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        prompt = [1] * 10
        llm.generate(prompt, GREEDY)
        assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 8
        llm.reload_weights()
        (output,) = llm.generate(prompt, GREEDY)
        assert output.num_cached_tokens == 0
        assert output.outputs[0].token_ids == solo(prompt, weights=1)
        assert llm.collective_rpc("reload_weights") == [None]
        assert llm.generate(prompt, GREEDY)[0].outputs[0].token_ids == solo(prompt, weights=2)


def test_a_stream_keeps_its_engine_alive(model_dir: Path) -> None:
    stream = fake_llm(model_dir).stream([1], GREEDY)
    gc.collect()
    assert [token for output in stream for token in output.outputs[0].token_ids] == solo([1])
    del stream
    gc.collect()
    assert no_engine_thread()


def test_a_change_of_weights_that_fails_ends_the_life_of_cached_prefixes(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        llm.generate([1] * 10, GREEDY)
        llm._client.call(lambda runner, _: setattr(runner, "reload_weights", fail_to_load))
        with pytest.raises(ConfigError, match="half of the weights"):
            llm.collective_rpc("reload_weights")
        assert llm.generate([1] * 10, GREEDY)[0].num_cached_tokens == 0


def fail_to_load(path: object = None) -> None:
    raise ConfigError("half of the weights are missing")


def test_a_process_that_forgets_to_shut_down_ends(model_dir: Path) -> None:
    program = f"""
from pathlib import Path
from tests.support.fake_llm import GREEDY, fake_llm
llm = fake_llm(Path({str(model_dir)!r}))
print(llm.generate([1], GREEDY)[0].outputs[0].token_ids)
stream = llm.stream([1], GREEDY.replace(max_tokens=None))
next(stream)
"""
    root = CHECKPOINTS.parent
    environment = child_environment(root / "src", root)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == solo([1])


def test_collective_rpc(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        (spec,) = llm.collective_rpc("get_kv_cache_spec")
        assert spec.block_size == 4
        with pytest.raises(InvalidRequestError, match="'no_such_method' can't be called by name"):
            llm.collective_rpc("no_such_method")


def test_the_order_of_the_start(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        trace = llm._client.call(lambda runner, _: runner.trace)
    assert trace.calls[:4] == [
        "load_model",
        "determine_available_memory",
        "initialize_kv_cache",
        "capture_graphs",
    ]
    assert len(trace.steps) > 3, "warm-up goes through real steps"
    assert trace.threads == {"dodona-engine"}


# --- Sizes


def test_max_model_len_is_that_of_config_json(model_dir: Path) -> None:
    with fake_llm(model_dir) as llm:
        assert llm.max_model_len == 64
    with pytest.raises(ConfigError, match=r"max_model_len=65 is over the 64 positions"):
        fake_llm(model_dir, max_model_len=65)


def test_too_few_blocks_for_one_request(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineSetupError, match="num_gpu_blocks_override=5 hold 20 tokens") as caught:
        fake_llm(model_dir, num_gpu_blocks_override=5, max_model_len=30)
    assert "lower max_model_len" in str(caught.value)
    with pytest.raises(EngineSetupError, match="gpu_memory_utilization"):
        fake_llm(model_dir, {"available_bytes": 100}, max_model_len=30)
    with pytest.raises(EngineSetupError, match=r"kv_cache_memory_bytes=100 .*; raise kv_cache_memory_bytes,"):
        fake_llm(model_dir, kv_cache_memory_bytes=100)
    with fake_llm(model_dir, num_gpu_blocks_override=5) as llm:
        assert llm.max_model_len == 20
        assert llm._client.call(lambda runner, _: runner.max_model_len) == 20
        assert "max_model_len is lowered from 64 to 20" in caplog.text
        (output,) = llm.generate([1] * 15, GREEDY)
        assert len(output.outputs[0].token_ids) == 5


def test_blocks_follow_from_memory(model_dir: Path) -> None:
    # One block: 4 tokens of 8 elements of 4 bytes.
    with fake_llm(model_dir, {"available_bytes": 128 * 30 + 127}) as llm:
        assert llm.num_kv_blocks == 30
    with fake_llm(model_dir, kv_cache_memory_bytes=128 * 20) as llm:
        assert llm.num_kv_blocks == 20


def test_whole_prompts_need_a_budget_for_the_longest(model_dir: Path) -> None:
    with pytest.raises(EngineSetupError, match="max_num_batched_tokens=16 is below max_model_len=64"):
        fake_llm(model_dir, enable_chunked_prefill=False)
    assert no_engine_thread()


# --- generation_config.json


def test_defaults_and_eos_of_generation_config(model_dir: Path) -> None:
    file = model_dir / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.5, "top_k": 7, "max_new_tokens": 9, "eos_token_id": [5, 6]}))
    with fake_llm(model_dir) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 7, 9)
        assert llm._client.admission.eos_token_ids == {0, 5, 6}
        (output,) = llm.generate([1])
        assert len(output.outputs[0].token_ids) <= 9
    file.write_text(json.dumps({"eos_token_id": [5, 97, 10**30]}))
    with fake_llm(model_dir) as llm:
        assert llm._client.admission.eos_token_ids == {0, 5}  # 97 tokens: the model makes no others
    with fake_llm(model_dir, generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()
        assert llm._client.admission.eos_token_ids == {0}
    for text, expected in (
        ("{", "not valid JSON"),
        ('{"top_p": 7}', "top_p must be above 0"),
        ("[]", "object"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=expected) as caught:
            fake_llm(model_dir)
        assert str(file) in str(caught.value)
    with pytest.raises(ConfigError, match="doesn't exist"):
        fake_llm(model_dir, generation_config=str(model_dir / "nowhere"))


# --- Text


def test_text_stop_strings_and_streams(model_dir: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(model_dir)
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "vocab_size": 300, "eos_token_id": None}))
    params = SamplingParams(temperature=0.0, max_tokens=40)
    with fake_llm(model_dir, {"vocab_size": 300}) as llm:
        (whole,) = llm.generate("one two", params)
        assert whole.prompt == "one two"
        assert whole.prompt_token_ids == tokenizer("one two")["input_ids"]
        text = whole.outputs[0].text
        assert text == tokenizer.decode(whole.outputs[0].token_ids, skip_special_tokens=True)
        assert "".join(o.outputs[0].text for o in llm.stream("one two", params)) == text

        stop = text[10:13]
        end = text.index(stop)
        for include in (False, True):
            stopping = params.replace(stop=[stop], include_stop_str_in_output=include)
            expected = text[: end + 3] if include else text[:end]
            (output,) = llm.generate("one two", stopping)
            sequence = output.outputs[0]
            assert (sequence.text, sequence.finish_reason, sequence.stop_reason) == (expected, "stop", stop)
            assert sequence.token_ids == whole.outputs[0].token_ids[: len(sequence.token_ids)]
            assert "".join(o.outputs[0].text for o in llm.stream("one two", stopping)) == expected

        token = whole.outputs[0].token_ids[5]
        count = whole.outputs[0].token_ids.index(token) + 1
        for include, shown in ((False, count - 1), (True, count)):
            stopping = params.replace(stop_token_ids=[token], include_stop_str_in_output=include)
            (output,) = llm.generate("one two", stopping)
            sequence = output.outputs[0]
            assert (sequence.finish_reason, sequence.stop_reason) == ("stop", token)
            assert len(sequence.token_ids) == count
            assert sequence.text == tokenizer.decode(sequence.token_ids[:shown], skip_special_tokens=True)
        (output,) = llm.generate("one two", params.replace(detokenize=False))
        assert output.outputs[0].text == ""


def test_chat_uses_the_template(model_dir: Path, tokenizer: Any) -> None:
    with fake_llm(model_dir) as llm, pytest.raises(InvalidRequestError, match="needs a tokenizer"):
        llm.chat([{"role": "user", "content": "one"}])
    tokenizer.save_pretrained(model_dir)
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    template = (
        "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with fake_llm(model_dir, {"vocab_size": 300}) as llm:
        with pytest.raises(InvalidRequestError, match="no chat template"):
            llm.chat([{"role": "user", "content": "one"}])
        messages = [{"role": "user", "content": "one"}]
        (one,) = llm.chat(messages, GREEDY, chat_template=template)
        assert one.prompt == "<|user|>one<|end|>>"
        assert one.prompt_token_ids == tokenizer(one.prompt)["input_ids"]
        for wrong in ("one", ["one"], [["one"]], [[messages]]):
            with pytest.raises(InvalidRequestError, match="list of messages"):
                llm.chat(wrong, GREEDY, chat_template=template)
        with pytest.raises(InvalidRequestError, match=r"template refuses .*no roles"):
            llm.chat(messages, GREEDY, chat_template="{{ raise_exception('no roles') }}")
        bad = [{"role": "user", "content": "one", "bad": True}]
        refusing = template.replace("{{ m.content }}", "{% if m.bad %}{{ 1 / 0 }}{% endif %}{{ m.content }}")
        several = [messages, bad, [{"role": "user", "content": "two " * 9_000}], "one", messages]
        outputs = llm.chat(several, GREEDY, chat_template=refusing)
        assert [output.error is None for output in outputs] == [True, False, False, False, True]
        assert [output.outputs[0].finish_reason for output in outputs[1:4]] == ["error"] * 3
        for output, reason in zip(
            outputs[1:4], ("template refuses", "characters", "list of mess"), strict=True
        ):
            assert reason in (output.error or "")
        assert outputs[0].outputs[0].token_ids == one.outputs[0].token_ids
        two = llm.chat([messages, messages], GREEDY, chat_template=template, add_generation_prompt=False)
        assert [output.prompt for output in two] == ["<|user|>one<|end|>"] * 2


def test_a_tokenizer_that_is_not_there_is_named(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tokenizer: .*/none: no such directory"):
        fake_llm(model_dir, tokenizer="/none")


def test_skip_tokenizer_init(model_dir: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(model_dir)
    with fake_llm(model_dir, skip_tokenizer_init=True) as llm:
        assert llm.get_tokenizer() is None
        (output,) = llm.generate([1, 2], GREEDY)
        assert output.outputs[0].text == ""
        assert output.outputs[0].token_ids == solo([1, 2])


def test_the_package_says_what_it_is() -> None:
    import tomllib

    project = tomllib.loads((CHECKPOINTS.parent / "pyproject.toml").read_text())["project"]
    assert dodona.__version__ == project["version"]
    assert {"LLM", "SamplingParams"} <= set(dir(dodona))
    with pytest.raises(AttributeError):
        dodona.no_such_name  # noqa: B018


def test_outputs_are_values() -> None:
    output = RequestOutput("x", None, [1], None, [], True)
    with pytest.raises(AttributeError):
        output.finished = False  # type: ignore[misc]
