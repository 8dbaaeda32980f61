"""The generated task: right answers, a true split, and a tokenizer that fits it."""

from __future__ import annotations

import random
from datetime import date, timedelta
from itertools import combinations_with_replacement, islice, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from checkpoints import task
from checkpoints.tokenizer import CHAT_TEMPLATE, train_tokenizer

CHECKPOINTS = Path(task.__file__).parent
NAMES = ("qwen3", "llama", "mistral")
NUMBERS = st.integers(0, 999)


@given(NUMBERS, NUMBERS)
def test_sums_share_the_split_with_their_mirror_image(a: int, b: int) -> None:
    there, back = task.sum_question(a, b), task.sum_question(b, a)
    assert there.text == f"What is {a} + {b}?"
    assert there.answer == back.answer == str(a + b)
    assert there.held_out == back.held_out


@given(st.lists(st.integers(0, 9), min_size=task.MIN_DIGITS, max_size=task.MAX_DIGITS))
def test_orders_of_the_same_digits_are_all_held_out_or_all_seen(digits: list[int]) -> None:
    question = task.sort_question(digits)
    answer = [int(digit) for digit in question.answer.split()]
    assert sorted(digits) == answer
    assert {task.sort_question(p).held_out for p in islice(permutations(digits), 24)} == {question.held_out}


@given(st.dates(task.FIRST_DAY, task.LAST_DAY))
def test_the_next_day_is_spelt_as_the_calendar_has_it(day: date) -> None:
    following = day + timedelta(days=1)
    # %-d is the day without a leading zero.
    assert task.next_day_question(day).answer == following.strftime("%B %-d, %Y")


@pytest.mark.parametrize("kind", task.KINDS)
def test_training_and_held_out_questions_are_disjoint(kind: str) -> None:
    rng = random.Random(kind)
    seen = {task.draw_question(rng, held_out=False, kind=kind).key for _ in range(3000)}
    unseen = {task.draw_question(rng, held_out=True, kind=kind).key for _ in range(1000)}
    assert len(seen) > 500
    assert len(unseen) > 100
    assert not seen & unseen


@pytest.mark.parametrize("held_out", [False, True])
def test_every_question_of_a_conversation_is_from_its_split(held_out: bool) -> None:
    rng = random.Random(5)
    recalls = 0
    for _ in range(500):
        turns = task.draw_conversation(rng, held_out=held_out, max_turns=6, recall=True)
        assert 1 <= len(turns) <= 6
        recalls += turns[-1].kind == "recall"
        if turns[-1].kind == "recall":
            assert turns[-1].answer == turns[0].answer
            turns = turns[:-1]
        assert {turn.held_out for turn in turns} == {held_out}
    assert recalls > 50


def test_the_counts_in_the_documentation() -> None:
    multisets = sum(
        sum(1 for _ in combinations_with_replacement(range(10), n))
        for n in range(task.MIN_DIGITS, task.MAX_DIGITS + 1)
    )
    sequences = sum(10**n for n in range(task.MIN_DIGITS, task.MAX_DIGITS + 1))
    days = (task.LAST_DAY - task.FIRST_DAY).days + 1
    pairs = 1000 * 1001 // 2
    for kind, questions, keys in (
        ("sum", 1000**2, pairs),
        ("difference", pairs, pairs),
        ("sort", sequences, multisets),
        ("reverse", sequences, sequences),
        ("next-day", days, days),
    ):
        assert any(
            line.startswith(f"| {kind} |") and line.endswith(f"| {questions:,} | {keys:,} |")
            for line in task.__doc__.splitlines()
        ), kind


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINTS / "qwen3" / "tokenizer.json"))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_tokenizer_is_the_one_the_script_trains(name: str) -> None:
    committed = Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json"))
    assert committed.get_vocab(with_added_tokens=True) == train_tokenizer().get_vocab(with_added_tokens=True)
    assert (CHECKPOINTS / name / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("What is 37 + 58?").tokens == [
        "What", "Ġis", "Ġ", "3", "7", "Ġ+", "Ġ", "5", "8", "?",
    ]  # fmt: skip
