"""Stop strings: where the search begins, and the defaults."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dodona.runners.text.detokenizer import Detokenizer, IncrementalText
from dodona.runners.text.stop_strings import StopStringText, find_stop, possible_stop
from tests.engine.test_stop_strings import brute_force, letters


@given(st.text("ab", max_size=12), st.lists(letters, min_size=1, max_size=3), st.integers(0, 12))
def test_only_ends_after_what_was_searched_count(text: str, stops: list[str], searched: int) -> None:
    searched = min(searched, len(text))
    assert find_stop(text, stops, searched) == brute_force(text, stops, searched)


def test_a_stop_string_that_ends_where_the_search_begins_does_not_count() -> None:
    assert find_stop("abxab", ["ab"], 2) == (3, 5)
    assert find_stop("abxab", ["ab"], 1) == (0, 2)
    assert find_stop("ab", ["ab"], 2) is None


def test_of_those_that_end_together_the_longest_is_found() -> None:
    assert find_stop("xabc", ["c", "abc", "bc"], 0) == (1, 4)
    assert find_stop("xabc", ["abc", "b"], 0) == (2, 3)


def test_one_character_may_begin_a_stop_string() -> None:
    assert possible_stop("xa", ["ab"]) == 1
    assert possible_stop("a", ["abc"]) == 1
    assert possible_stop("ab", ["ab"]) == 0
    assert possible_stop("", ["ab"]) == 0


def stopping(tokenizer: Any, stops: list[str], **more: Any) -> StopStringText:
    return StopStringText(IncrementalText(Detokenizer(tokenizer), []), stops, **more)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer(letter)["input_ids"][0] for letter in text]


def test_by_default_the_first_token_may_stop_and_the_stop_string_is_cut(tokenizer: Any) -> None:
    text = stopping(tokenizer, ["x"])
    (token,) = ids_of(tokenizer, "x")
    assert text.add(token) == "x"
    assert (text.text, text.take()) == ("", "")


def test_the_stop_string_is_kept_where_it_is_asked_for(tokenizer: Any) -> None:
    text = stopping(tokenizer, ["xy"], include_stop_string=True)
    assert [text.add(token) for token in ids_of(tokenizer, "axy")] == [None, None, "xy"]
    assert (text.text, text.take()) == ("axy", "axy")
    # Nothing needs to be held back, since it stays.
    text = stopping(tokenizer, ["xy"], include_stop_string=True)
    text.add(ids_of(tokenizer, "x")[0])
    assert text.take() == "x"


def test_text_after_the_stop_string_in_its_token_is_cut(tokenizer: Any) -> None:
    (token,) = tokenizer(" three")["input_ids"]
    for include, expected in ((False, " t"), (True, " thr")):
        text = stopping(tokenizer, ["hr"], include_stop_string=include)
        assert text.add(token) == "hr"
        assert text.take() == text.text == expected


def test_what_looks_like_the_beginning_of_a_stop_string_is_given_out_at_the_stop(tokenizer: Any) -> None:
    text = stopping(tokenizer, ["xy", "b!"])
    tokens = ids_of(tokenizer, "abxy")
    assert [text.add(token) for token in tokens] == [None, None, None, "xy"]
    assert text.take() == "ab"


def test_min_tokens_counts_tokens_before_the_search(tokenizer: Any) -> None:
    text = stopping(tokenizer, ["x"], min_tokens=2)
    assert [text.add(token) for token in ids_of(tokenizer, "xxx")] == [None, None, "x"]
    assert text.text == "xx"


def test_the_last_token_may_be_given_at_the_end(tokenizer: Any) -> None:
    text = stopping(tokenizer, ["xyz"])
    x, y = ids_of(tokenizer, "xy")
    text.add(x)
    text.finish(y)
    assert text.take() == text.text == "xy"
