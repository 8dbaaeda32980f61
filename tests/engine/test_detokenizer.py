"""Text as it comes, against transformers' decode of everything at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dodona.runners.text.detokenizer import MOST_HELD, Detokenizer, IncrementalText

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


def test_spaces_between_special_tokens() -> None:
    from transformers import PreTrainedTokenizerFast

    # A tokenizer without a decoder puts a space between any two tokens.
    backend = Tokenizer(models.WordLevel({"<a>": 0, "<b>": 1, "word": 2, "?": 3}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<a>", eos_token="<b>")
    detokenizer = Detokenizer(tokenizer)
    ids = [0, 1, 2, 2, 1]
    assert detokenizer.decode(ids, skip_special_tokens=False) == "<a> <b> word word <b>"
    closed = detokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert closed == "<a><b>word word<b>"
    assert detokenizer.decode(ids) == "word word"


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer: Any) -> None:
    assert Detokenizer(tokenizer).decode([5000]) == ""
    assert Detokenizer(tokenizer).token(5000) == ""
