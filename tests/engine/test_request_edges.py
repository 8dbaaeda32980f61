"""A request by itself: which token is its last, why, and what its text is then."""

from __future__ import annotations

from typing import Any

import pytest

from dodona.runners.engine.admission import Admission
from dodona.runners.engine.events import Event, discard
from dodona.runners.engine.prompts import Prompt
from dodona.runners.engine.request import NO_ROW, Request
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.token_logprobs import TokenLogprobs


def admitted(tokenizer: Any = None, *, prompt: list[int] | None = None, **params: Any) -> Request:
    admission = Admission(
        vocab_size=500, max_model_len=20, max_logprobs=5, seed=1, eos_token_ids=(0,), tokenizer=tokenizer
    )
    (request,) = admission.admit(Prompt(token_ids=prompt or [5, 6, 7]), SamplingParams(**params))
    return request


def text_of(request: Request) -> str:
    assert request.stop_text is not None
    return request.stop_text.take()


def append(request: Request, token_ids: list[int]) -> list[str | None]:
    reasons = []
    for token_id in token_ids:
        request.append(token_id)
        reasons.append(request.finish_reason)
    return reasons


def test_a_request_begins_with_its_prompt_and_nothing_else() -> None:
    request = admitted(max_tokens=4)
    assert request.token_ids == [5, 6, 7]
    assert (request.num_prompt_tokens, request.num_tokens, request.num_output_tokens) == (3, 3, 0)
    assert (request.limit, request.schedulable_until) == (7, 7)
    assert (request.row, request.block_ids, request.capacity) == (NO_ROW, [], 0)
    assert NO_ROW < 0  # no row has this number
    assert (request.block_hashes, request.next_block_end) == ([], 0)
    assert (request.num_computed_tokens, request.num_cached_tokens, request.num_delivered_tokens) == (
        0,
        None,
        0,
    )
    assert (request.finished, request.stop_reason, request.error) == (False, None, None)
    assert (request.logprobs, request.prompt_logprobs, request.index) == ([], [], 0)
    assert repr(request) == f"Request({request.request_id!r}, 3/7 tokens, None)"


def test_a_request_has_what_it_was_made_with() -> None:
    def sink(event: Event) -> None:
        del event

    params = SamplingParams(stop_token_ids=[8])
    given: dict[str, Any] = {
        "seed": 7,
        "limit": 9,
        "index": 2,
        "bad_words_token_ids": ((5,), (6, 7)),
        "streaming": True,
    }
    request = Request("a/2", [1, 2], params, eos_token_ids=frozenset({0}), parent_id="a", sink=sink, **given)
    assert {name: getattr(request, name) for name in given} == given
    assert (request.request_id, request.parent_id, request.sink) == ("a/2", "a", sink)
    assert (request.params, request.stop_token_ids, request.eos_token_ids) == (params, {0, 8}, {0})
    assert (request.grammar, request.stop_text, request.num_prefill_tokens) == (None, None, 0)
    plain = Request("b", [1], params, seed=1, limit=9)
    assert (plain.parent_id, plain.index, plain.bad_words_token_ids) == ("b", 0, ())
    assert (plain.sink, plain.streaming, plain.stop_token_ids) == (discard, False, {8})


def test_which_log_probabilities_are_wanted() -> None:
    for params, wanted in (
        ({}, (False, False)),
        ({"logprobs": 0}, (True, False)),
        ({"prompt_logprobs": 0}, (False, True)),
    ):
        request = admitted(**params)
        assert (request.wants_logprobs, request.wants_prompt_logprobs) == wanted


def test_the_limit_is_the_last_token() -> None:
    request = admitted(max_tokens=2)
    assert append(request, [9, 9]) == [None, "length"]
    assert (request.num_output_tokens, request.stop_reason) == (2, None)


def test_the_end_of_text_stops_and_gives_no_reason_of_its_own() -> None:
    request = admitted(max_tokens=9)
    assert append(request, [9, 0]) == [None, "stop"]
    assert (request.stop_reason, request.token_ids) == (None, [5, 6, 7, 9, 0])
    assert append(admitted(max_tokens=9, ignore_eos=True), [9, 0]) == [None, None]


def test_a_stop_token_is_the_reason() -> None:
    request = admitted(max_tokens=9, stop_token_ids=[8])
    assert append(request, [9, 8]) == [None, "stop"]
    assert request.stop_reason == 8
    request = admitted(max_tokens=9, stop_token_ids=[0], ignore_eos=True)
    assert append(request, [0]) == ["stop"]
    assert request.stop_reason == 0


def test_stop_tokens_count_from_the_last_of_min_tokens_on() -> None:
    for params in ({"stop_token_ids": [8]}, {}):
        token = 8 if params else 0
        request = admitted(max_tokens=9, min_tokens=3, **params)
        assert append(request, [token, token, token]) == [None, None, "stop"]


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    assert append(admitted(max_tokens=1), [0]) == ["stop"]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer(letter)["input_ids"][0] for letter in text]


def test_a_stop_string_ends_it_and_is_the_reason(tokenizer: Any) -> None:
    request = admitted(tokenizer, max_tokens=9, stop="xy")
    assert append(request, ids_of(tokenizer, "axy")) == [None, None, "stop"]
    assert (request.stop_reason, text_of(request)) == ("xy", "a")


def test_a_stop_string_with_the_last_token_is_a_stop(tokenizer: Any) -> None:
    request = admitted(tokenizer, max_tokens=2, stop="xy")
    assert append(request, ids_of(tokenizer, "xy")) == [None, "stop"]


def test_appending_returns_the_number_of_tokens(tokenizer: Any) -> None:
    (b,) = ids_of(tokenizer, "b")
    for last in ([b], [0], ids_of(tokenizer, "xy"), [b, b, b, b]):
        request = admitted(tokenizer, max_tokens=4, stop="xy")
        assert [request.append(token_id) for token_id in last] == [4 + i for i in range(len(last))]
    refused = structured()
    assert (refused.append(5), refused.append(100)) == (3, 3)


def test_at_the_limit_all_text_is_there(tokenizer: Any) -> None:
    request = admitted(tokenizer, max_tokens=2, stop="xyz")
    assert append(request, ids_of(tokenizer, "xy")) == [None, "length"]
    assert text_of(request) == "xy"


def test_an_abort_gives_out_the_text_so_far(tokenizer: Any) -> None:
    request = admitted(tokenizer, max_tokens=9, stop="xyz")
    append(request, ids_of(tokenizer, "axy"))
    request.abort()
    assert (request.finished, request.finish_reason, text_of(request)) == (True, "abort", "axy")
    request = admitted(max_tokens=9)
    request.abort()
    assert request.finish_reason == "abort"


@pytest.mark.parametrize(("include", "expected"), [(False, "ax"), (True, "axb")])
def test_the_stop_tokens_own_text(tokenizer: Any, include: bool, expected: str) -> None:
    (b,) = ids_of(tokenizer, "b")
    request = admitted(
        tokenizer, max_tokens=9, stop="xyz", stop_token_ids=[b], include_stop_str_in_output=include
    )
    assert append(request, ids_of(tokenizer, "axb")) == [None, None, "stop"]
    assert (request.stop_reason, text_of(request)) == (b, expected)


class Grammar:
    """Allows tokens below 100."""

    error = "it broke"

    def accept(self, token_id: int) -> bool:
        return token_id < 100


def structured(**changes: Any) -> Request:
    params = SamplingParams(**{"max_tokens": 5, "logprobs": 0, **changes})
    return Request(
        "a",
        [1, 2],
        params,
        seed=1,
        limit=7,
        eos_token_ids=frozenset({0}),
        grammar=Grammar(),  # type: ignore[arg-type]
    )


def test_with_a_grammar_one_token_at_a_time_may_be_under_way() -> None:
    request = structured()
    ahead = []
    for token_id in (5, 6, 7):
        ahead.append(request.schedulable_until)
        request.append(token_id)
    assert ahead == [3, 4, 5]
    assert append(request, [8]) == [None]
    assert request.schedulable_until == 7
    assert append(request, [9]) == ["length"]
    assert request.schedulable_until == 7


def test_a_grammars_end_ends_it_whatever_min_tokens_says() -> None:
    assert append(structured(min_tokens=4), [5, 0]) == [None, "stop"]
    # A stop token of the user's is not the grammar's end.
    assert append(structured(min_tokens=3, stop_token_ids=[5]), [5, 5, 5]) == [None, None, "stop"]


def test_a_token_that_the_grammar_refuses_is_dropped_with_its_log_probabilities() -> None:
    request = structured()
    for token_id in (5, 100):
        request.logprobs.append(token_id)  # type: ignore[arg-type]
        request.append(token_id)
    assert (request.finish_reason, request.error, request.stop_reason) == ("error", "it broke", None)
    assert (request.token_ids, request.logprobs) == ([1, 2, 5], [5])


def logprobs_of(token_id: int) -> TokenLogprobs:
    return TokenLogprobs((token_id,), (-1.0,), 1)


def test_progress_is_what_is_new() -> None:
    request = admitted(max_tokens=3, logprobs=0, prompt_logprobs=0)
    request.prompt_logprobs += [logprobs_of(6), logprobs_of(7)]
    found = []
    for token_ids in ([8], [], [9, 10]):
        request.logprobs += map(logprobs_of, token_ids)
        append(request, token_ids)
        found.append(request.take_progress())
    assert [progress.token_ids for progress in found] == [(8,), (), (9, 10)]
    assert [progress.logprobs for progress in found] == [
        (logprobs_of(8),), (), (logprobs_of(9), logprobs_of(10)),
    ]  # fmt: skip
    assert [progress.prompt_logprobs for progress in found] == [
        (logprobs_of(6), logprobs_of(7)), None, None,
    ]  # fmt: skip
    assert [progress.finish_reason for progress in found] == [None, None, "length"]
    assert {each.request_id for each in found} == {request.request_id}
    assert {(each.sequence_index, each.num_cached_tokens) for each in found} == {(0, 0)}
    assert {(each.text, each.stop_reason, each.error) for each in found} == {(None, None, None)}


def test_progress_without_log_probabilities() -> None:
    request = admitted(stop_token_ids=[8])
    request.num_cached_tokens = 2
    append(request, [8])
    progress = request.take_progress()
    assert (progress.logprobs, progress.prompt_logprobs, progress.num_cached_tokens) == ((), None, 2)
    assert (progress.finish_reason, progress.stop_reason) == ("stop", 8)


def test_progress_with_stop_strings_has_their_text(tokenizer: Any) -> None:
    request = admitted(tokenizer, max_tokens=9, stop="xyz")
    texts = []
    for token_id in ids_of(tokenizer, "axyb"):
        append(request, [token_id])
        texts.append(request.take_progress().text)
    assert texts == ["a", "", "", "xyb"]


def test_a_refused_token_gives_out_the_text_so_far(tokenizer: Any) -> None:
    request = admitted(tokenizer, max_tokens=9, stop="xyz")
    append(request, ids_of(tokenizer, "ax"))
    request.grammar = Grammar()  # type: ignore[assignment]
    assert append(request, [100]) == ["error"]
    progress = request.take_progress()
    assert (progress.text, progress.error, progress.token_ids[2:]) == ("ax", "it broke", ())
