"""Text as it comes, against transformers' decode of everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dodona.runners.text.detokenizer import MOST_HELD, REPLACEMENT, Detokenizer, IncrementalText

within_fixture = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def decode(tokenizer: Any, ids: list[int], skip: bool = True) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@within_fixture
@given(st.lists(st.lists(st.integers(0, 401), max_size=4), max_size=20), st.booleans())
def test_pieces_of_random_tokens_join_up_to_the_whole(
    tokenizer: Any, additions: list[list[int]], skip: bool
) -> None:
    text = IncrementalText(
        Detokenizer(tokenizer), tokenizer("a prompt")["input_ids"], skip_special_tokens=skip
    )
    pieces = [text.add(ids) for ids in additions]
    everything = [i for ids in additions for i in ids]
    assert "".join(pieces) + text.finish() == decode(tokenizer, everything, skip)


@within_fixture
@given(st.text(max_size=30), st.text(max_size=30))
def test_pieces_of_a_text_are_whole_characters(tokenizer: Any, prompt: str, output: str) -> None:
    ids = tokenizer(output)["input_ids"]
    text = IncrementalText(Detokenizer(tokenizer), tokenizer(prompt)["input_ids"])
    shown = ""
    for i in ids:
        piece = text.add([i])
        shown += piece
        if "\ufffd" not in output:
            assert "\ufffd" not in piece
            assert output.startswith(shown)
    assert shown + text.finish() == output


def test_a_character_of_several_tokens_comes_once_it_is_whole(tokenizer: Any) -> None:
    ids = tokenizer("🧭")["input_ids"]
    assert len(ids) == 3
    text = IncrementalText(Detokenizer(tokenizer), [])
    assert [text.add([i]) for i in ids] == ["", "", "🧭"]


def test_an_incomplete_character_at_the_end_is_shown_as_such(tokenizer: Any) -> None:
    ids = tokenizer("a🧭")["input_ids"][:-1]
    text = IncrementalText(Detokenizer(tokenizer), [])
    assert "".join(text.add([i]) for i in ids) == "a"
    assert text.finish() == decode(tokenizer, ids)[1:]
    assert text.finish() == ""


def invalid(data: bytes) -> bytes:
    """Bytes that are no ASCII, most of them no characters."""
    return bytes(byte | 128 for byte in data)


@within_fixture
@given(st.lists(st.sampled_from(["a", "é", "🧭"]) | st.binary(max_size=40).map(invalid), max_size=4))
@example(["a", b"\xff" * 100, "🧭"])
@example([b"\xf0\x9f" * 50, b"\xa7\xad" * 50])
def test_bytes_that_are_no_characters_are_not_held_back_for_long(tokenizer: Any, parts: list[Any]) -> None:
    byte_ids = bytes_of(tokenizer)
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    ids = [byte_ids[byte] for byte in data]
    text = IncrementalText(Detokenizer(tokenizer), [])
    shown = ""
    for count, i in enumerate(ids, 1):
        shown += text.add([i])
        certain = decode(tokenizer, ids[: max(0, count - 2 * MOST_HELD)])
        assert len(shown) >= len(certain) - 4
    assert shown + text.finish() == decode(tokenizer, ids) == data.decode(errors="replace")


class Bytes:
    """A tokenizer of bytes and of one special token. Its decoder puts one replacement per byte where they are
    not UTF-8 as a whole, as the ByteFallback of SentencePiece's tokenizers does. It is not a fast one."""

    special = 256
    all_special_ids: tuple[int, ...] = (special,)

    def __init__(self) -> None:
        self.longest = 0
        """Most tokens that were decoded at once."""

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        self.longest = max(self.longest, len(token_ids))
        data = bytes(i for i in token_ids if i != self.special)
        specials = "" if skip_special_tokens else "<|end|>" * list(token_ids).count(self.special)
        try:
            text = data.decode()
            return (text.replace(" ,", ",") if clean_up_tokenization_spaces else text) + specials
        except UnicodeDecodeError:
            return REPLACEMENT * len(data) + specials


def test_a_tokenizer_that_is_not_fast() -> None:
    ids = list("né🧭".encode())
    text = IncrementalText(Detokenizer(Bytes()), ids[:1])
    assert [text.add([i]) for i in ids[1:]] == ["", "é", "", "", "", "🧭"]
    assert Detokenizer(Bytes()).token(Bytes.special) == "<|end|>"
    assert Detokenizer(Bytes()).decode([97, Bytes.special]) == "a"
    assert Detokenizer(Bytes()).decode(list(b"a , b")) == "a , b"


@pytest.mark.parametrize("tail", [[0x95], [0x95, *[Bytes.special] * 7]])
def test_a_character_among_tokens_without_text_is_not_given_out_in_parts(tail: list[int]) -> None:
    """Of the tokens that are held back, few may bring bytes: less than one character's are not enough to say
    that the text before them is certain."""
    ids = [0xE6, *[Bytes.special] * 8, *tail, 0xB0]
    text = IncrementalText(Detokenizer(Bytes()), [])
    assert "".join(text.add([i]) for i in ids) + text.finish() == "数"


@pytest.mark.parametrize(
    ("before", "after", "shown"), [(9, 4, 9), (9, 3, 0), (4, 8, 4), (3, 8, 0), (4, 4, 4), (3, 3, 0)]
)
def test_text_is_given_out_with_a_characters_bytes_on_both_sides_of_the_cut(
    before: int, after: int, shown: int
) -> None:
    """A character has four bytes at most, and each byte that is shown here is one replacement."""
    keep = MOST_HELD // 2
    ids = [0xFF] * before + [Bytes.special] * (MOST_HELD + 1 - before - after) + [0xFF] * after
    # All of `before` comes before the last `keep` tokens, and all of `after` is among them.
    assert before <= len(ids) - keep
    assert after <= keep
    text = IncrementalText(Detokenizer(Bytes()), [])
    pieces = [text.add([i]) for i in ids]
    assert pieces[:-1] == [""] * MOST_HELD
    assert pieces[-1] == REPLACEMENT * shown
    assert "".join(pieces) + text.finish() == REPLACEMENT * (before + after)


@pytest.mark.parametrize("prompt", [b"", b"a prompt"])
def test_sixteen_tokens_are_held_back_whatever_comes_before_them(prompt: bytes) -> None:
    """The prompt's tokens do not count. Of 17 tokens the last eight are kept as context."""
    text = IncrementalText(Detokenizer(Bytes()), list(prompt))
    pieces = [text.add([0xFF]) for _ in range(17)]
    assert pieces == [""] * 16 + [REPLACEMENT * 9]
    assert text.finish() == REPLACEMENT * 8


def test_the_last_six_tokens_of_the_prompt_are_context() -> None:
    tokenizer = Bytes()
    text = IncrementalText(Detokenizer(tokenizer), list(b"a long prompt"))
    assert tokenizer.longest == 6
    assert text.add(list(b"!")) == "!"
    assert tokenizer.longest == 7


def test_each_addition_decodes_few_tokens_however_long_the_text_is() -> None:
    tokenizer = Bytes()
    text = IncrementalText(Detokenizer(tokenizer), [])
    for i in b"text \xc3\xa9" * 40:
        text.add([i])
    assert tokenizer.longest <= 4
    for _ in range(100):
        text.add([0xFF])
    assert tokenizer.longest <= 2 * MOST_HELD


def bytes_of(tokenizer: Any) -> list[int]:
    """The id of each byte's own token."""
    found = tokenizer.get_vocab()
    spelt = pre_tokenizers.ByteLevel.alphabet()
    # The bytes that print as themselves, then the others, are GPT-2's alphabet in order.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    names = {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}
    assert set(names.values()) == set(spelt)
    return [found[names[byte]] for byte in range(256)]


def test_a_prompt_that_ends_within_a_character_does_not_eat_the_output(tokenizer: Any) -> None:
    ids = tokenizer("🧭 ok")["input_ids"]
    text = IncrementalText(Detokenizer(tokenizer), ids[:2])
    assert text.add(ids[2:]) + text.finish() == decode(tokenizer, ids[2:])


def test_one_addition_equals_many(tokenizer: Any) -> None:
    ids = tokenizer("über 数字 🙂 three")["input_ids"]
    many, one = (IncrementalText(Detokenizer(tokenizer), []) for _ in range(2))
    assert "".join(many.add([i]) for i in ids) + many.finish() == one.finish(ids) == "über 数字 🙂 three"


@pytest.fixture(scope="module")
def metaspace() -> Any:
    """A tokenizer like SentencePiece's, whose decoder drops the first space."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        ["one two three"] * 5, trainers.BpeTrainer(vocab_size=60, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_space_between_prompt_and_output_stays(metaspace: Any) -> None:
    prompt, output = metaspace("one")["input_ids"], metaspace("two three")["input_ids"]
    text = IncrementalText(Detokenizer(metaspace), prompt)
    assert "".join(text.add([i]) for i in output) + text.finish() == " two three"


def test_spaces_between_special_tokens(word_tokenizer: Any) -> None:
    detokenizer = Detokenizer(word_tokenizer)
    ids = [0, 1, 2, 2, 1]
    assert detokenizer.decode(ids, skip_special_tokens=False) == "<a> <b> word word <b>"
    closed = detokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert closed == "<a><b>word word<b>"
    assert detokenizer.decode(ids) == "word word"
    assert IncrementalText(detokenizer, []).finish(ids) == "word word"
    shown = IncrementalText(detokenizer, [], skip_special_tokens=False)
    assert shown.finish(ids) == "<a> <b> word word <b>"
    shown = IncrementalText(detokenizer, [], skip_special_tokens=False, spaces_between_special_tokens=False)
    assert shown.finish(ids) == "<a><b>word word<b>"


def test_special_tokens_that_the_tokenizer_does_not_list_are_shown_too() -> None:
    class Unlisted(Bytes):
        all_special_ids = ()

    for spaces in (True, False):
        shown = Detokenizer(Unlisted()).decode(
            [97, Bytes.special], skip_special_tokens=False, spaces_between_special_tokens=spaces
        )
        assert shown == "a<|end|>"


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer: Any) -> None:
    assert Detokenizer(tokenizer).decode([5000]) == ""
    assert Detokenizer(tokenizer).token(5000) == ""
