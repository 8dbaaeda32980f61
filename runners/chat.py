"""Makes prompts of conversations, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from dodona.oracle.printable import short
from dodona.runners.engine.prompts import PromptLike, RefusedPrompt
from dodona.runners.errors import InvalidRequestError
from dodona.runners.third_party import first_line, is_third_party

MAX_PROMPT_CHARACTERS = 16 << 20
"""Most characters that a chat template may print."""

MAX_TEMPLATE_CHARACTERS = 1 << 17
"""Longest chat template: jinja takes seconds to compile ten times as many."""

Message = Mapping[str, Any]
"""``{"role": "user", "content": "text"}``, and whatever else the template reads."""


def chat_prompts(
    tokenizer: Any,
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    *,
    add_generation_prompt: bool = True,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    check_length: Callable[[str], None] = lambda text: None,
) -> list[PromptLike | RefusedPrompt]:
    """The prompt of a conversation, or of each of several: its text, and the token ids of that text.

    Of several, one that can't be served is a RefusedPrompt with the reason.

    tokenizer: transformers' tokenizer, or None where there is none.
    add_generation_prompt: whether the prompt ends with the beginning of the assistant's next message.
    chat_template: a Jinja template in place of the tokenizer's own.
    chat_template_kwargs: more names that the template reads.
    check_length: raises InvalidRequestError for a text that is too long to be tokenized.

    Raises InvalidRequestError where there is no tokenizer or no chat template, where nothing that is given
    is a conversation, and for one conversation that the template can't take.
    """
    if tokenizer is None:
        raise InvalidRequestError("chat needs a tokenizer, and there is none; give token ids to generate")
    if chat_template is None and not getattr(tokenizer, "chat_template", None):
        raise InvalidRequestError("the tokenizer has no chat template; give one by chat_template=")
    if not isinstance(messages, (list, tuple)):
        raise InvalidRequestError(f"messages: expected a list of messages, got {short(messages)}")
    single = bool(messages) and isinstance(messages[0], Mapping)
    conversations: Sequence[Any] = [messages] if single else messages
    if conversations and not any(map(_is_conversation, conversations)):
        raise _no_conversation(conversations[0])
    given = {"add_generation_prompt": add_generation_prompt, "chat_template": chat_template}
    template = partial(_text, tokenizer, {**given, **(chat_template_kwargs or {})})
    if single:
        return [_prompt(tokenizer, messages, template, check_length)]
    prompts: list[PromptLike | RefusedPrompt] = []
    for conversation in conversations:
        try:
            prompts.append(_prompt(tokenizer, conversation, template, check_length))
        except InvalidRequestError as error:
            prompts.append(RefusedPrompt(str(error)))
    return prompts


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(message, Mapping) for message in value)


def _no_conversation(value: Any) -> InvalidRequestError:
    return InvalidRequestError(
        'a conversation is a list of messages such as {"role": "user", "content": "text"}, '
        f"got {short(value)}"
    )


def _prompt(
    tokenizer: Any, conversation: Any, template: Callable[[Any], str], check_length: Callable[[str], None]
) -> PromptLike:
    if not _is_conversation(conversation):
        raise _no_conversation(conversation)
    try:
        text = template(conversation)
    except Exception as error:  # a template is a program, and may raise anything
        raise InvalidRequestError(
            f"the chat template refuses {short(conversation)}: {first_line(error)}"
        ) from error
    check_length(text)
    try:
        # The template has put the special tokens in.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except BaseException as error:
        if not is_third_party(error):
            raise
        raise InvalidRequestError(
            f"the tokenizer can't take the conversation {short(conversation)}: {first_line(error)}"
        ) from error
    return {"prompt": text, "prompt_token_ids": ids}


def _text(tokenizer: Any, options: Mapping[str, Any], conversation: Any) -> str:
    """What the template makes of a conversation."""
    _bound_output(tokenizer, options)
    text: str = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    return text


def _bound_output(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Have the template stop when it has printed `MAX_PROMPT_CHARACTERS`.

    transformers keeps the templates that it has compiled, so that `apply_chat_template` takes this one.
    """
    from transformers.utils import chat_template_utils

    source = tokenizer.get_chat_template(options["chat_template"], options.get("tools"))
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise OverflowError(f"it has {len(source)} characters, more than {MAX_TEMPLATE_CHARACTERS}")
    compiled: Any = chat_template_utils._compile_jinja_template(source)
    compiled.environment.concat = _bounded_text


def _bounded_text(parts: Iterable[str]) -> str:
    found, length = [], 0
    for part in parts:
        found.append(part)
        length += len(part)
        if length > MAX_PROMPT_CHARACTERS:
            raise OverflowError(f"it prints more than {MAX_PROMPT_CHARACTERS} characters")
    return "".join(found)
