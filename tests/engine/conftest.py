"""A tiny byte-level BPE tokenizer, and a model directory that holds a config.json only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 400


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE over 400 tokens, trained on text with characters of one to four bytes."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["one two three one two", "wörter über straßen", "数字と文字", "🙂🙃 smiles 🙂"] * 20
    backend.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    return fast


@pytest.fixture(scope="session")
def word_tokenizer() -> Any:
    """One token per word, ids 0 to 3: the special ones <a> and <b>, "word", "?". It has no decoder, so that a
    space comes between any two tokens."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<a>": 0, "<b>": 1, "word": 2, "?": 3}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<a>", eos_token="<b>")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model of 97 tokens and 64 positions, as far as config.json goes."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 97,
        "max_position_embeddings": 64,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "eos_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path
