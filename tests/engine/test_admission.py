"""What is admitted, with which limits and seeds, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dodona.runners.engine.admission import Admission, derive_seed
from dodona.runners.engine.prompts import Prompt, as_prompt_list, parse_prompt
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling.params import SamplingParams


def admission(tokenizer: Any = None, **changes: Any) -> Admission:
    settings = {"vocab_size": 100, "max_model_len": 20, "max_logprobs": 5, "seed": 1, "eos_token_ids": (0, 9)}
    return Admission(**{**settings, "tokenizer": tokenizer, **changes})


def admit(prompt: Any, *, tokenizer: Any = None, request_id: str | None = None, **params: Any) -> Any:
    return admission(tokenizer).admit(parse_prompt(prompt), SamplingParams(**params), request_id)


@pytest.mark.parametrize(
    ("prompt", "params", "expected"),
    [
        ([], {}, "the prompt is empty"),
        (
            [1] * 20,
            {},
            "the prompt has 20 tokens, and with at least one more to generate that is over max_model_len=20",
        ),
        ([1, 100], {}, "prompt: token id 100 is out of the vocabulary (0 .. 99)"),
        ([1, -1], {}, "prompt: token id -1 is out of the vocabulary"),
        ("text", {}, "a text prompt needs a tokenizer"),
        ([1], {"stop": "x"}, "stop holds text, which needs a tokenizer"),
        ([1], {"bad_words": ["x"]}, "bad_words holds text, which needs a tokenizer"),
        ([1], {"logprobs": 6}, "logprobs=6 is over max_logprobs=5"),
        ([1], {"prompt_logprobs": 6}, "prompt_logprobs=6 is over max_logprobs=5"),
        ([1], {"stop_token_ids": [100]}, "stop_token_ids: token id 100"),
        ([1], {"allowed_token_ids": [100]}, "allowed_token_ids: token id 100"),
        ([1], {"logit_bias": {100: 1}}, "logit_bias: token id 100"),
        (
            [1],
            {"structured_outputs": {"json": {}}},
            "structured_outputs: the runner does not support structured-outputs",
        ),
        (
            [1],
            {"logits_processors": [print]},
            "logits_processors: the runner does not support logits-processors",
        ),
    ],
)
def test_refusals(prompt: Any, params: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        admit(prompt, **params)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1.5], "a prompt must be text, token ids or a mapping, got list: [1.5]"),
        (3, "a prompt must be text, token ids or a mapping, got int: 3"),
        (None, "got NoneType"),
        ({}, "neither is given"),
        ({"prompt": 3}, "'prompt' must be text, got int"),
        ({"prompt": "x", "multi_modal_data": 1}, "unknown key 'multi_modal_data'"),
    ],
)
def test_what_is_no_prompt(prompt: Any, expected: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_prompt(prompt)
    assert expected in str(caught.value)


def test_forms_of_prompts() -> None:
    assert parse_prompt("x") == parse_prompt({"prompt": "x"}) == Prompt("x")
    assert (
        parse_prompt([1, 2]) == parse_prompt(np.array([1, 2])) == parse_prompt({"prompt_token_ids": (1, 2)})
    )
    assert as_prompt_list("x") == ["x"]
    assert as_prompt_list([1, 2]) == [[1, 2]]
    assert as_prompt_list(["x", [1]]) == ["x", [1]]
    assert as_prompt_list([[1], [2]]) == [[1], [2]]
    assert as_prompt_list([]) == []
    assert as_prompt_list([[]]) == [[]]
    assert as_prompt_list({"prompt": "x"}) == [{"prompt": "x"}]
    assert len(as_prompt_list(list(np.array([1, 2])))) == 1


def test_reserved_request_ids() -> None:
    with pytest.raises(InvalidRequestError, match="are reserved"):
        admit([1], request_id="__dodona_x")


def test_limits() -> None:
    def limit(**params: Any) -> int:
        (request,) = admit([1] * 5, **params)
        return request.limit

    assert limit(max_tokens=3) == 8
    assert limit(max_tokens=100) == 20
    assert limit(max_tokens=None) == 20


def test_stop_tokens() -> None:
    (request,) = admit([1], stop_token_ids=[7])
    assert request.stop_token_ids == {0, 9, 7}
    (request,) = admit([1], stop_token_ids=[7], ignore_eos=True)
    assert request.stop_token_ids == {7}


def test_several_sequences() -> None:
    requests = admit([1], n=3, seed=2**63 - 1, prompt_logprobs=1, request_id="x")
    assert [request.seed for request in requests] == [2**63 - 1, 0, 1]
    assert [request.wants_prompt_logprobs for request in requests] == [True, False, False]
    assert {request.parent_id for request in requests} == {"x"}
    assert len({request.request_id for request in requests}) == 3
    assert [request.index for request in requests] == [0, 1, 2]


def test_seeds_follow_from_the_engines_seed_and_the_order_of_arrival() -> None:
    def seeds(engine_seed: int) -> list[int]:
        admitted = admission(seed=engine_seed)
        return [admitted.admit(Prompt(token_ids=[1]), SamplingParams())[0].seed for _ in range(4)]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 8
    assert all(0 <= derive_seed(s, i) < 2**63 for s in (0, 2**63) for i in range(100))


def test_bad_words_with_and_without_a_space_before(tokenizer: Any) -> None:
    (request,) = admission(tokenizer, vocab_size=500).admit(
        Prompt(token_ids=[1]), SamplingParams(bad_words=["two", " two"])
    )
    expected = {tuple(tokenizer("two")["input_ids"]), tuple(tokenizer(" two")["input_ids"])}
    assert len(expected) == 2
    assert set(request.bad_words_token_ids) == expected


def test_text_prompts(tokenizer: Any) -> None:
    (request,) = admission(tokenizer, vocab_size=500).admit(Prompt("one two"), SamplingParams())
    assert request.token_ids == tokenizer("one two")["input_ids"]
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        admit("", tokenizer=tokenizer)


def test_stop_strings_come_with_the_parameters_of_their_text(tokenizer: Any) -> None:
    (request,) = admission(tokenizer, vocab_size=500).admit(Prompt("one"), SamplingParams())
    assert request.stop_text is None

    def text(*token_ids: int, **params: Any) -> tuple[str, str | None]:
        (request,) = admission(tokenizer, vocab_size=500).admit(
            Prompt("one"), SamplingParams(stop="x", ignore_eos=True, **params)
        )
        for token_id in token_ids:
            if not request.finished:
                request.append(token_id)
        if not request.finished:
            request.abort()
        progress = request.take_progress()
        assert progress.text is not None
        return progress.text, progress.finish_reason

    (a,), (x,) = (tokenizer(letter)["input_ids"] for letter in "ax")
    special = tokenizer.convert_tokens_to_ids("<|user|>")
    assert text(a, x, a) == ("a", "stop")
    assert text(a, x, a, include_stop_str_in_output=True) == ("ax", "stop")
    assert text(x, a, x, a, min_tokens=2) == ("xa", "stop")
    assert text(a, special) == ("a", "abort")
    assert text(a, special, skip_special_tokens=False) == ("a<|user|>", "abort")
    # A stop token's text is shown or not as a stop string's.
    assert text(x, a, min_tokens=1, stop_token_ids=[a]) == ("x", "stop")
    assert text(x, a, min_tokens=1, stop_token_ids=[a], include_stop_str_in_output=True) == ("xa", "stop")
    # What is held back comes with the last token.
    ids = tokenizer("🧭")["input_ids"]
    assert text(*ids[:-1], max_tokens=len(ids) - 1) == ("\ufffd", "length")
    assert text(*ids[:-1]) == ("\ufffd", "abort")


def test_log_probabilities_of_given_tokens_are_checked() -> None:
    with pytest.raises(
        InvalidRequestError, match="logprob_token_ids holds 6 ids, which is over max_logprobs=5"
    ):
        admit([1], logprob_token_ids=range(6))
    with pytest.raises(InvalidRequestError, match="logprob_token_ids: token id 100"):
        admit([1], logprob_token_ids=[100])


def test_special_tokens_in_the_text_that_is_searched(word_tokenizer: Any) -> None:
    def text(**params: Any) -> str:
        (request,) = admission(word_tokenizer, eos_token_ids=()).admit(
            Prompt(token_ids=[2]), SamplingParams(stop="?", skip_special_tokens=False, **params)
        )
        for token_id in (0, 1, 2):
            request.append(token_id)
        request.abort()
        return request.take_progress().text or ""

    assert text().strip() == "<a> <b> word"
    assert text(spaces_between_special_tokens=False).strip() == "<a><b>word"


class BeginsText:
    """A tokenizer that puts a special token before each text, unless told not to."""

    all_special_ids = (1,)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def test_bad_words_have_no_special_tokens() -> None:
    (request,) = admission(BeginsText(), vocab_size=500).admit(Prompt("a"), SamplingParams(bad_words=["b"]))
    assert request.token_ids == [1, ord("a")]
    assert set(request.bad_words_token_ids) == {(ord("b"),), (ord(" "), ord("b"))}
