"""Makes prompts of conversations, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dodona.oracle.printable import short
from dodona.runners.engine.prompts import PromptLike
from dodona.runners.errors import InvalidRequestError
from dodona.runners.third_party import first_line, is_third_party

MAX_PROMPT_CHARACTERS = 16 << 20
"""Longest prompt that a chat template may make."""

Message = Mapping[str, Any]
"""``{"role": "user", "content": "text"}``, and whatever else the template reads."""


def chat_prompts(
    tokenizer: Any,
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    *,
    add_generation_prompt: bool = True,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[PromptLike]:
    """The prompt of a conversation, or of each of several: its text, and the token ids of that text.

    tokenizer: transformers' tokenizer, or None where there is none.
    add_generation_prompt: whether the prompt ends with the beginning of the assistant's next message.
    chat_template: a Jinja template in place of the tokenizer's own.
    chat_template_kwargs: more names that the template reads.

    Raises InvalidRequestError where there is no tokenizer or no chat template, for what is no conversation,
    and for what the template can't take.
    """
    if tokenizer is None:
        raise InvalidRequestError("chat needs a tokenizer, and there is none; give token ids to generate")
    if chat_template is None and not getattr(tokenizer, "chat_template", None):
        raise InvalidRequestError("the tokenizer has no chat template; give one by chat_template=")
    if not isinstance(messages, (list, tuple)):
        raise InvalidRequestError(f"messages: expected a list of messages, got {messages!r:.80}")
    single = bool(messages) and isinstance(messages[0], Mapping)
    prompts: list[PromptLike] = []
    for conversation in [messages] if single else messages:
        if not isinstance(conversation, (list, tuple)) or not all(
            isinstance(message, Mapping) for message in conversation
        ):
            raise InvalidRequestError(
                'a conversation is a list of messages such as {"role": "user", "content": "text"}, '
                f"got {conversation!r:.80}"
            )
        try:
            text = tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template,
                **(chat_template_kwargs or {}),
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise InvalidRequestError(
                f"the chat template refuses {short(conversation)}: {first_line(error)}"
            ) from error
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequestError(
                f"the chat template makes a prompt of {len(text)} characters, more than "
                f"{MAX_PROMPT_CHARACTERS}"
            )
        try:
            # The template has put the special tokens in.
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except BaseException as error:
            if not is_third_party(error):
                raise
            raise InvalidRequestError(
                f"the tokenizer can't take the conversation {short(conversation)}: {first_line(error)}"
            ) from error
        prompts.append({"prompt": text, "prompt_token_ids": ids})
    return prompts
