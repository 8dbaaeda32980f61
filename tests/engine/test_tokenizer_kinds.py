"""Streaming equals generating, for the kinds of tokenizers that models have."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.runners.text.detokenizer import Detokenizer, IncrementalText
from dodona.runners.text.stop_strings import StopStringText
from dodona.runners.text.tokenizer import load_tokenizer

LETTERS = [*string.ascii_letters, *string.digits, *".,!?-'\n", "é", "ü", "数", "字", "🙂"]
PIECES = [*LETTERS, "he", "llo", "wor", "ld", "ing"]
SPECIAL = "<|end|>"


def sentencepiece_bpe(*, left_strip: bool) -> Tokenizer:
    """Llama 2, Mistral v0.1, Gemma: bytes that have no piece of their own are `<0x..>`."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *PIECES, "▁he", "▁wor"]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if left_strip else steps)
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


def byte_level() -> Tokenizer:
    """GPT-2, Llama 3, Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "he", "ll", "Ġw", "ÃĤ"]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def word_piece(*, cleanup: bool) -> Tokenizer:
    """BERT."""
    tokens = ["[UNK]", *PIECES, *(f"##{piece}" for piece in PIECES)]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=cleanup)
    return backend


def unigram(*, prepend: str) -> Tokenizer:
    """T5, XLM-RoBERTa, ALBERT."""
    tokens = ["<unk>", "▁", *PIECES, "▁he", "▁wor"]
    backend = Tokenizer(models.Unigram([(t, -float(i)) for i, t in enumerate(tokens)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return backend


def word_level() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["[UNK]", *PIECES])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def bpe_decoder() -> Tokenizer:
    """The first GPT, XLM: words end with `</w>`."""
    tokens = ["<unk>", *PIECES, *(f"{piece}</w>" for piece in PIECES)]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    backend.decoder = decoders.BPEDecoder()
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "llama-2": lambda: sentencepiece_bpe(left_strip=True),
    "gemma": lambda: sentencepiece_bpe(left_strip=False),
    "byte-level": byte_level,
    "word-piece": lambda: word_piece(cleanup=False),
    "word-piece-cleanup": lambda: word_piece(cleanup=True),
    "unigram-always": lambda: unigram(prepend="always"),
    "unigram-first": lambda: unigram(prepend="first"),
    "unigram-never": lambda: unigram(prepend="never"),
    "word-level": word_level,
    "bpe-end-of-word": bpe_decoder,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    backend = KINDS[request.param]()
    backend.add_special_tokens([AddedToken(SPECIAL, special=True)])
    backend.add_tokens([AddedToken("<tool>", special=False), AddedToken(" two words", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_joined_pieces_are_the_whole_text(tokenizer: Any, data: st.DataObject) -> None:
    ids = st.integers(0, len(tokenizer) - 1)
    prompt = data.draw(st.lists(ids, max_size=8))
    output = data.draw(st.lists(ids, max_size=24))
    skip = data.draw(st.booleans())

    def text() -> IncrementalText:
        return IncrementalText(Detokenizer(tokenizer), prompt, skip_special_tokens=skip)

    streamed, whole = text(), text()
    joined = "".join([streamed.add([i]) for i in output]) + streamed.finish()
    assert joined == whole.finish(output)
    stopping = StopStringText(text(), ("no such text",))
    for i in output:
        assert stopping.add(i) is None
    stopping.finish(None)
    assert stopping.text == joined


def test_a_byte_waits_for_the_end_of_its_run() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=sentencepiece_bpe(left_strip=True))
    a, newline, high = tokenizer.convert_tokens_to_ids(["a", "<0x0A>", "<0xF0>"])
    text = IncrementalText(Detokenizer(tokenizer), [a])
    assert [text.add([i]) for i in (a, newline, a, newline, high)] == ["a", "", "\na", "", ""]
    assert text.finish() == tokenizer.decode([a, newline, high])[1:]


def test_a_long_run_of_bytes_is_decoded_once() -> None:
    backend = sentencepiece_bpe(left_strip=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    detokenizer = Detokenizer(tokenizer)
    run = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "数字🙂".encode() * 50])
    text = IncrementalText(detokenizer, [])
    assert {text.add([i]) for i in run} == {""}
    assert text.add(tokenizer.convert_tokens_to_ids(["a"])) == "数字🙂" * 50 + "a"


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_steps_that_make_text_ever_longer_are_refused(part: str, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "checkpoints/qwen3"
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path)
    data = json.loads((source / "tokenizer.json").read_text())
    step = {"type": "Replace", "pattern": {"String": "1"}, "content": "11"}
    for count in (10, 60):
        data[part] = {"type": "Sequence", f"{part}s": [step] * count}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        config = EngineConfig.from_flat(str(tmp_path))
        if count == 10:
            assert load_tokenizer(config, tmp_path) is not None
        else:
            with pytest.raises(
                ConfigError, match=f"its {part} may make a text more than 10000 times as long"
            ):
                load_tokenizer(config, tmp_path)
