"""Stop strings against a brute-force search that sees the text character by character."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dodona.runners.text.detokenizer import Detokenizer, IncrementalText
from dodona.runners.text.stop_strings import StopStringText, find_stop, possible_stop


def brute_force(text: str, stops: list[str], searched: int = 0) -> tuple[int, int] | None:
    for end in range(searched + 1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return min(begins), end
    return None


letters = st.text("abc", min_size=1, max_size=4)


@given(st.text("abc", max_size=20), st.lists(letters, min_size=1, max_size=3))
def test_the_stop_string_that_is_complete_first(text: str, stops: list[str]) -> None:
    assert find_stop(text, stops, 0) == brute_force(text, stops)


@given(st.text("ab", max_size=10), st.lists(letters, min_size=1, max_size=3))
def test_what_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    expected = max(
        (
            n
            for n in range(len(text) + 1)
            for s in stops
            if len(s) > n and s.startswith(text[len(text) - n :])
        ),
        default=0,
    )
    assert possible_stop(text, stops) == expected


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text("one tw🙂ö", min_size=1, max_size=4), min_size=1, max_size=10),
    st.lists(st.text("one tw🙂ö", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 6),
)
def test_streamed_text_ends_at_the_first_stop_string(
    tokenizer: Any, parts: list[str], stops: list[str], include: bool, min_tokens: int
) -> None:
    ids = tokenizer("".join(parts))["input_ids"]
    # What the first min_tokens tokens give is not searched.
    unsearched = IncrementalText(Detokenizer(tokenizer), [])
    start = len("".join(unsearched.add([i]) for i in ids[:min_tokens]))
    text = "".join(parts)
    found = brute_force(text, stops, start)
    expected = text if found is None else text[: found[1] if include else found[0]]

    stopping = StopStringText(
        IncrementalText(Detokenizer(tokenizer), []), stops, include_stop_string=include, min_tokens=min_tokens
    )
    shown = ""
    stop = None
    for i in ids:
        stop = stopping.add(i)
        shown += stopping.take()
        assert expected.startswith(shown)
        if stop is not None:
            break
    if stop is None:
        stopping.finish(None)
    shown += stopping.take()
    assert shown == stopping.text == expected
    assert stop == (None if found is None else text[found[0] : found[1]])


def test_a_stop_string_over_token_boundaries_is_held_back(tokenizer: Any) -> None:
    stopping = StopStringText(IncrementalText(Detokenizer(tokenizer), []), ["xyz"])
    shown = []
    for letter in "axyaxyz":
        (token,) = tokenizer(letter)["input_ids"]
        stop = stopping.add(token)
        shown.append(stopping.take())
    assert stop == "xyz"
    assert shown == ["a", "", "", "xya", "", "", ""]


def test_text_held_back_comes_at_the_end(tokenizer: Any) -> None:
    stopping = StopStringText(IncrementalText(Detokenizer(tokenizer), []), ["xyz"])
    for letter in "axy":
        stopping.add(tokenizer(letter)["input_ids"][0])
    assert stopping.take() == "a"
    stopping.finish(None)
    assert stopping.take() == "xy"


def test_a_stop_string_in_the_first_token_counts(tokenizer: Any) -> None:
    stopping = StopStringText(IncrementalText(Detokenizer(tokenizer), []), ["x"])
    assert stopping.add(tokenizer("x")["input_ids"][0]) == "x"


def test_nothing_is_held_back_where_the_stop_string_stays(tokenizer: Any) -> None:
    stopping = StopStringText(IncrementalText(Detokenizer(tokenizer), []), ["xyz"], include_stop_string=True)
    shown = []
    for letter in "axyz":
        stopping.add(tokenizer(letter)["input_ids"][0])
        shown.append(stopping.take())
    assert shown == ["a", "x", "y", "z"]


def test_the_end_brings_the_last_token_and_an_incomplete_character(tokenizer: Any) -> None:
    first, *rest = tokenizer("🧭")["input_ids"]
    for last, expected in ((None, "\ufffd"), (tokenizer("a")["input_ids"][0], "\ufffda")):
        stopping = StopStringText(IncrementalText(Detokenizer(tokenizer), []), ["xyz"])
        stopping.add(first)
        assert stopping.take() == ""
        stopping.finish(last)
        assert stopping.take() == expected
    assert rest
