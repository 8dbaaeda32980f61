"""The checkpoints' tokenizer: byte-level BPE trained on the task, a token per digit, with a chat template."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from checkpoints.task import RECALL, draw_question

END_OF_TEXT, USER, ASSISTANT, END_OF_TURN = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"
"""A plain answer ends with END_OF_TEXT, an answer in a chat with END_OF_TURN: generation stops at either."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{%- else %}{{ raise_exception('roles are user and assistant, not ' + message['role']) }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(*, vocab_size: int = 384, num_questions: int = 20_000) -> Tokenizer:
    """Train on the training split; the vocabulary ends smaller where no pair is left to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, USER, ASSISTANT, END_OF_TURN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(num_questions), trainer)
    return tokenizer


def _text(num_questions: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(num_questions):
        question = draw_question(rng, held_out=False)
        yield f"{question.text} {question.answer}"
        # Chats begin an answer without the space, so both spellings of a month must be tokens.
        yield question.answer
        yield RECALL


def as_transformers(tokenizer: Tokenizer, *, max_length: int) -> Any:
    """The same tokenizer as a transformers one, ready for `save_pretrained`."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
