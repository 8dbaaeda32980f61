"""Outputs made of progress, without an engine."""

from __future__ import annotations

from typing import Any

import pytest

from dodona.runners.engine.admission import Admission
from dodona.runners.engine.assembler import OutputAssembler, readable
from dodona.runners.engine.events import Progress
from dodona.runners.engine.prompts import Prompt
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from dodona.runners.text.detokenizer import Detokenizer

PROMPT = [1, 2, 3]


def assembler(tokenizer: Any = None, **params: Any) -> OutputAssembler:
    admission = Admission(vocab_size=500, max_model_len=50, max_logprobs=5, seed=0, tokenizer=tokenizer)
    requests = admission.admit(Prompt("shown", PROMPT), SamplingParams(**params), "mine")
    return OutputAssembler("shown", requests, admission.detokenizer)


def progress(*token_ids: int, **changes: Any) -> Progress:
    fields: dict[str, Any] = {
        "request_id": "mine",
        "sequence_index": 0,
        "token_ids": token_ids,
        "logprobs": (),
        "prompt_logprobs": None,
        "num_cached_tokens": 0,
        "text": None,
        "finish_reason": None,
        "stop_reason": None,
        "error": None,
    }
    return Progress(**{**fields, **changes})


def logprob(token_id: int, value: float) -> TokenLogprobs:
    return TokenLogprobs((token_id, 9), (value, -0.25), 2)


def test_a_prompt_is_finished_with_its_last_sequence() -> None:
    made = assembler(n=2)
    first = made.add(progress(5, finish_reason="length"))
    assert not made.finished
    assert not made.output([first]).finished
    second = made.add(progress(6, 7, sequence_index=1, finish_reason="stop", stop_reason=7))
    output = made.output([first, second])
    assert output.finished
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("mine", "shown", PROMPT)
    assert [(each.index, each.token_ids) for each in output.outputs] == [(0, [5]), (1, [6, 7])]
    assert [(each.finish_reason, each.stop_reason) for each in output.outputs] == [
        ("length", None),
        ("stop", 7),
    ]


def test_cached_tokens_are_those_of_the_first_sequence() -> None:
    made = assembler(n=2)
    # The second finds what the first has computed.
    output = made.output([made.add(progress(5, sequence_index=1, num_cached_tokens=16))])
    assert output.num_cached_tokens == 0
    output = made.output([made.add(progress(5, num_cached_tokens=4))])
    assert output.num_cached_tokens == 4
    output = made.output([made.add(progress(5, sequence_index=1, num_cached_tokens=16))])
    assert output.num_cached_tokens == 4


def test_an_error_of_one_sequence_is_the_prompts() -> None:
    made = assembler(n=2)
    assert made.output([made.add(progress(5, finish_reason="error", error="it broke"))]).error == "it broke"
    last = made.add(progress(6, sequence_index=1, finish_reason="length"))
    assert made.output([last]).error == "it broke"


def test_log_probabilities_add_up_over_the_pieces() -> None:
    made = assembler(logprobs=1)
    first = made.add(progress(5, logprobs=(logprob(5, -1.0),)))
    second = made.add(progress(6, 7, logprobs=(logprob(6, -0.5), logprob(7, -2.0)), finish_reason="length"))
    assert (first.cumulative_logprob, second.cumulative_logprob) == (-1.0, -3.5)
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert [list(entry) for entry in first.logprobs + second.logprobs] == [[5, 9], [6, 9], [7, 9]]
    plain = assembler().add(progress(5))
    assert (plain.cumulative_logprob, plain.logprobs) == (None, None)


def test_prompt_log_probabilities_stay_with_the_output() -> None:
    made = assembler(prompt_logprobs=1)
    first = made.output([made.add(progress(5, prompt_logprobs=(logprob(2, -1.0), logprob(3, -2.0))))])
    second = made.output([made.add(progress(6, finish_reason="length"))])
    assert first.prompt_logprobs == second.prompt_logprobs
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert [list(entry or {}) for entry in first.prompt_logprobs[1:]] == [[2, 9], [3, 9]]


def test_ranks_of_the_token_the_most_probable_and_the_given() -> None:
    entry = TokenLogprobs((5, 8, 5, 3, 4), (-1.0, -0.5, -1.0, -3.0, -4.0), 2, (30, 40))
    made = readable(entry, None)
    assert {token: (each.rank, each.logprob) for token, each in made.items()} == {
        5: (2, -1.0),
        8: (1, -0.5),
        3: (30, -3.0),
        4: (40, -4.0),
    }
    assert list(made) == [5, 8, 3, 4]


@pytest.mark.parametrize("include", [False, True])
def test_the_text_of_a_stop_token(tokenizer: Any, include: bool) -> None:
    one, two = (tokenizer(word)["input_ids"] for word in ("one", " two"))
    made = assembler(tokenizer, include_stop_str_in_output=include)
    texts = [made.add(progress(*one)).text]
    last = made.add(progress(*two, finish_reason="stop", stop_reason=two[-1]))
    assert last.token_ids == two
    shown = one + two if include else one + two[:-1]
    assert "".join([*texts, last.text]) == Detokenizer(tokenizer).decode(shown)


def test_the_last_token_has_text_where_nothing_stopped_it(tokenizer: Any) -> None:
    one = tokenizer("one")["input_ids"]
    assert assembler(tokenizer).add(progress(*one, finish_reason="length")).text == "one"
    assert assembler(tokenizer).add(progress(*one, finish_reason="abort")).text == "one"


def test_what_is_held_back_comes_at_the_end(tokenizer: Any) -> None:
    ids = tokenizer("🧭")["input_ids"]
    made = assembler(tokenizer)
    assert made.add(progress(*ids[:-1])).text == ""
    assert made.add(progress(finish_reason="abort")).text == Detokenizer(tokenizer).decode(ids[:-1])


def test_text_that_the_engine_made_is_taken_as_it_is(tokenizer: Any) -> None:
    one = tokenizer("one")["input_ids"]
    made = assembler(tokenizer, stop="x")
    assert made.add(progress(*one, text="")).text == ""
    assert made.add(progress(text="one", finish_reason="stop", stop_reason="x")).text == "one"


def test_no_text_without_detokenize(tokenizer: Any) -> None:
    one = tokenizer("one")["input_ids"]
    assert assembler(tokenizer, detokenize=False).add(progress(*one, finish_reason="length")).text == ""


def test_special_tokens_in_the_text(word_tokenizer: Any) -> None:
    def text(**params: Any) -> str:
        return assembler(word_tokenizer, **params).add(progress(0, 1, 2, 1, finish_reason="length")).text

    # " word" comes after the prompt's text.
    assert text().strip() == "word"
    assert text(skip_special_tokens=False).strip() == "<a> <b> word <b>"
    shown = text(skip_special_tokens=False, spaces_between_special_tokens=False)
    assert shown.strip() == "<a><b>word<b>"
