"""The task that the committed checkpoints were trained on: short questions whose answers can be checked.

Every question has a `key` that names the problem behind its wording (37 + 58 and 58 + 37 share one, as do all
orders of the digits to sort). One key in sixteen, by CRC-32, is held out: training never draws it, so a
question with a held-out key is unseen by construction, not by luck.

| kind | example | answer | distinct questions | distinct keys |
| --- | --- | --- | --- | --- |
| sum | What is 37 + 58? | 95 | 1,000,000 | 500,500 |
| difference | What is 512 - 37? | 475 | 500,500 | 500,500 |
| sort | Sort the digits 7 3 9 1. | 1 3 7 9 | 1,111,000 | 7,942 |
| reverse | Write 48213 backwards. | 31284 | 1,111,000 | 1,111,000 |
| next-day | Which day comes after December 31, 2024? | January 1, 2025 | 36,525 | 36,525 |

Conversations string several questions together, and may end with "What was your first answer?", which only a
model that attends to the beginning can answer.
"""

from __future__ import annotations

import calendar
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

HELD_OUT_SHARE = 16
"""One key in this many is held out."""
MIN_DIGITS, MAX_DIGITS = 3, 6
"""Lengths of what is sorted and reversed."""
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2099, 12, 31)
RECALL = "What was your first answer?"


@dataclass(frozen=True, slots=True)
class Question:
    """One question in plain ASCII, with its only right answer."""

    kind: str
    text: str
    answer: str
    key: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees this question."""
        return zlib.crc32(f"{self.kind}:{self.key}".encode()) % HELD_OUT_SHARE == 0


def sum_question(a: int, b: int) -> Question:
    """a + b for 0 <= a, b <= 999."""
    return Question("sum", f"What is {a} + {b}?", str(a + b), f"{min(a, b)},{max(a, b)}")


def difference_question(a: int, b: int) -> Question:
    """a - b for 0 <= b <= a <= 999."""
    return Question("difference", f"What is {a} - {b}?", str(a - b), f"{a},{b}")


def sort_question(digits: Sequence[int]) -> Question:
    """3 to 6 digits in ascending order."""
    answer = " ".join(map(str, sorted(digits)))
    return Question("sort", f"Sort the digits {' '.join(map(str, digits))}.", answer, answer)


def reverse_question(digits: str) -> Question:
    """3 to 6 digits from the last to the first."""
    return Question("reverse", f"Write {digits} backwards.", digits[::-1], digits)


def next_day_question(day: date) -> Question:
    """The day after one of the years 2000 to 2099."""
    following = day + timedelta(days=1)
    return Question("next-day", f"Which day comes after {_spelt(day)}?", _spelt(following), day.isoformat())


def leap_questions() -> list[Question]:
    """The 25 questions whose answer is a February 29."""
    years = range(FIRST_DAY.year, LAST_DAY.year + 1)
    return [next_day_question(date(year, 2, 28)) for year in years if calendar.isleap(year)]


def _spelt(day: date) -> str:
    return f"{_MONTHS[day.month - 1]} {day.day}, {day.year}"


_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def _draw_number(rng: random.Random) -> int:
    # Uniform in the number of digits first: uniform in the value would leave one-digit numbers at 1%.
    return rng.randrange(10 ** rng.randint(1, 3))


def _draw_sum(rng: random.Random) -> Question:
    return sum_question(_draw_number(rng), _draw_number(rng))


def _draw_difference(rng: random.Random) -> Question:
    a, b = _draw_number(rng), _draw_number(rng)
    return difference_question(max(a, b), min(a, b))


def _draw_digits(rng: random.Random) -> list[int]:
    return [rng.randrange(10) for _ in range(rng.randint(MIN_DIGITS, MAX_DIGITS))]


def _draw_sort(rng: random.Random) -> Question:
    return sort_question(_draw_digits(rng))


def _draw_reverse(rng: random.Random) -> Question:
    return reverse_question("".join(map(str, _draw_digits(rng))))


def _draw_next_day(rng: random.Random) -> Question:
    day = FIRST_DAY + timedelta(days=rng.randrange((LAST_DAY - FIRST_DAY).days + 1))
    if rng.random() < 0.3:  # the ends of months hold all the difficulty and are only 3% of the days
        day = (day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    return next_day_question(day)


KINDS: Mapping[str, tuple[float, Callable[[random.Random], Question]]] = {
    "sum": (0.30, _draw_sum),
    "difference": (0.30, _draw_difference),
    "sort": (0.15, _draw_sort),
    "reverse": (0.10, _draw_reverse),
    "next-day": (0.15, _draw_next_day),
}
"""By kind: its share of the questions, and how one is drawn."""
_NAMES = tuple(KINDS)
_WEIGHTS = tuple(weight for weight, _ in KINDS.values())


def draw_question(rng: random.Random, *, held_out: bool, kind: str | None = None) -> Question:
    """Draw one question, of `kind` if given, from the held-out keys or from all the others."""
    while True:
        name = kind or rng.choices(_NAMES, _WEIGHTS)[0]
        question = KINDS[name][1](rng)
        if question.held_out == held_out:
            return question


def draw_conversation(
    rng: random.Random, *, held_out: bool, max_turns: int, recall: bool
) -> tuple[Question, ...]:
    """Draw 1 to `max_turns` questions that one user asks in a row.

    With `recall`, one conversation in three of two or more turns ends by asking for the first answer.
    """
    turns = [draw_question(rng, held_out=held_out) for _ in range(rng.randint(1, max_turns))]
    if recall and len(turns) > 1 and rng.random() < 1 / 3:
        first = turns[0]
        turns[-1] = Question("recall", RECALL, first.answer, f"{first.kind}:{first.key}")
    return tuple(turns)


def chat_messages(turns: Sequence[Question]) -> list[dict[str, str]]:
    """The conversation up to and including the last question, as a chat template takes it."""
    messages: list[dict[str, str]] = []
    for turn in turns[:-1]:
        messages.append({"role": "user", "content": turn.text})
        messages.append({"role": "assistant", "content": turn.answer})
    return [*messages, {"role": "user", "content": turns[-1].text}]
