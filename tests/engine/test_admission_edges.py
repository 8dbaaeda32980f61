"""Admission at its bounds: the last value that is served and the first that is refused, names and seeds."""

from __future__ import annotations

from typing import Any

import pytest

from dodona.runners.engine.admission import Admission, derive_seed
from dodona.runners.engine.prompts import Prompt
from dodona.runners.engine.request import Request
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling.params import SamplingParams
from tests.engine.test_admission import admission, admit


def refused(prompt: Any, **params: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        admit(prompt, **params)
    return str(caught.value)


def test_the_longest_prompt_leaves_room_for_one_token() -> None:
    (request,) = admit([1] * 19)
    assert (request.limit, request.num_prompt_tokens) == (20, 19)
    assert "the prompt has 20 tokens" in refused([1] * 20)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_as_many_log_probabilities_as_allowed(name: str) -> None:
    admit([1], **{name: 5})
    assert f"{name}=6 is over max_logprobs=5" in refused([1], **{name: 6})


def test_as_many_log_probability_ids_as_allowed() -> None:
    admit([1], logprob_token_ids=[1, 2, 3, 4, 99])
    assert "logprob_token_ids holds 6 ids" in refused([1], logprob_token_ids=[1, 2, 3, 4, 5, 6])
    assert "logprob_token_ids: token id 100" in refused([1], logprob_token_ids=[1, 100])


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_the_ends_of_the_vocabulary(name: str) -> None:
    def holding(*token_ids: int) -> Any:
        return dict.fromkeys(token_ids, 1.0) if name == "logit_bias" else list(token_ids)

    admit([0, 99], **{name: holding(0, 99)})
    assert f"{name}: token id 100 is out of the vocabulary (0 .. 99)" in refused([1], **{name: holding(100)})


@pytest.mark.parametrize("prompt", [[1, 100, 2], [100, 1], [1, -1, 2], [-1, 1]])
def test_every_token_of_the_prompt_is_checked(prompt: list[int]) -> None:
    assert "prompt: token id" in refused(prompt)


def test_a_runner_with_the_feature_serves_it() -> None:
    able = admission(request_features=frozenset({"logits-processors"}))
    able.admit(Prompt(token_ids=[1]), SamplingParams(logits_processors=[print]))
    with pytest.raises(InvalidRequestError, match="structured_outputs"):
        able.admit(Prompt(token_ids=[1]), SamplingParams(structured_outputs={"json": {}}))


def test_each_sequence_has_its_own_place_in_the_grammar(tokenizer: Any) -> None:
    pytest.importorskip("llguidance")
    able = admission(
        tokenizer,
        vocab_size=len(tokenizer),
        eos_token_ids=(0,),
        request_features=frozenset({"structured-outputs"}),
    )
    a, b = tokenizer("a")["input_ids"][0], tokenizer("b")["input_ids"][0]
    params = SamplingParams(structured_outputs={"regex": "[a]b"}, n=2, max_tokens=5)
    first, second = (request.grammar for request in able.admit(Prompt(token_ids=[5]), params))
    assert first is not None
    assert second is not None
    assert (first.accept(a), first.accept(b), second.accept(b)) == (True, True, False)
    assert second.error is not None
    (plain,) = able.admit(Prompt(token_ids=[5]), SamplingParams())
    assert plain.grammar is None


def test_names_of_requests() -> None:
    admitting = admission()

    def names(request_id: str | None = None, **params: Any) -> list[tuple[str, str]]:
        found = admitting.admit(Prompt(token_ids=[1]), SamplingParams(**params), request_id)
        return [(request.request_id, request.parent_id) for request in found]

    (first,), (second,) = names(), names()
    for request_id, parent_id in (first, second):
        assert request_id == parent_id
        assert request_id.startswith("auto-")
    assert first != second
    assert names("mine") == [("mine", "mine")]
    assert names("mine", n=2) == [("mine/0", "mine"), ("mine/1", "mine")]


def test_several_sequences_have_their_own_seeds_and_share_the_rest() -> None:
    requests = admit([1, 2], n=2, seed=10, max_tokens=3, bad_words=None, prompt_logprobs=2, temperature=0.5)
    assert [request.seed for request in requests] == [10, 11]
    assert [request.limit for request in requests] == [5, 5]
    assert [request.params.prompt_logprobs for request in requests] == [2, None]
    assert [request.params.temperature for request in requests] == [0.5, 0.5]
    assert requests[0].token_ids is not requests[1].token_ids
    (plain, other) = admit([1], n=2)
    assert plain.params is other.params


def split_mix(state: int) -> int:
    """SplitMix64's next output, as its authors' C code has it."""
    value = state
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


@pytest.mark.parametrize(("engine_seed", "number"), [(0, 0), (0, 1), (1, 0), (7, 123), (2**63, 5), (-3, 2)])
def test_seeds_are_two_rounds_of_split_mix(engine_seed: int, number: int) -> None:
    step = 0x9E3779B97F4A7C15
    value = (engine_seed * step + number) % 2**64
    for _ in range(2):
        value = split_mix((value + step) % 2**64)
    assert derive_seed(engine_seed, number) == value % 2**63


def test_seeds_without_one_follow_the_order_of_prompts() -> None:
    admitting = admission(seed=3)
    found = [admitting.admit(Prompt(token_ids=[1]), SamplingParams(n=2)) for _ in range(2)]
    expected = [[derive_seed(3, i), (derive_seed(3, i) + 1) % 2**63] for i in range(2)]
    assert [[request.seed for request in requests] for requests in found] == expected


def with_text(tokenizer: Any, **params: Any) -> Request:
    admitting = Admission(
        vocab_size=500, max_model_len=50, max_logprobs=5, seed=1, eos_token_ids=(0,), tokenizer=tokenizer
    )
    (request,) = admitting.admit(Prompt("one two"), SamplingParams(**params))
    return request


def test_bad_words_that_begin_with_spaces_or_repeat(tokenizer: Any) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text)["input_ids"])

    request = with_text(tokenizer, bad_words=["  two", "two", "one"])
    assert request.bad_words_token_ids == (ids("two"), ids(" two"), ids("one"), ids(" one"))
    assert with_text(tokenizer).bad_words_token_ids == ()


def test_stop_strings_obey_the_parameters_of_text(tokenizer: Any) -> None:
    def reasons(text: str, **params: Any) -> list[str | None]:
        request = with_text(tokenizer, stop="x", max_tokens=20, ignore_eos=True, **params)
        found = []
        for token_id in tokenizer(text)["input_ids"]:
            request.append(token_id)
            found.append(request.finish_reason)
        return found

    assert reasons("ax") == [None, "stop"]
    assert reasons("xx", min_tokens=1) == [None, "stop"]
    request = with_text(tokenizer, stop=["<|end|>"], ignore_eos=True, skip_special_tokens=False)
    request.append(tokenizer.eos_token_id)
    assert (request.finish_reason, request.stop_reason) == ("stop", "<|end|>")
    request = with_text(tokenizer, stop=["<|end|>"], ignore_eos=True)
    request.append(tokenizer.eos_token_id)
    assert request.finish_reason is None
